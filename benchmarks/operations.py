"""Does it pay? Operations of the search space, and settings of the optimiser, each on its own.

    python benchmarks/operations.py [--group operations|optimizers] [--arm NAME …] [--seeds N]
                                    [--budget N] [--json FILE]

Every arm searches the built-in family with the same seeds. The default proposes `--budget` candidates;
all other arms stop when they have scored as many tokens as the default did with that seed. Of each run
the recipe with the lowest searched loss is scored on the held-out set, which nothing was chosen by.
The table shows held-out losses (nats per token), and differences from the default, seed by seed. With
--json, runs that the file holds are not run again.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import nevergrad as ng
import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_rel  # type: ignore[import-untyped]

from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.config import Operations, SearchConfig
from gptailor_merge.objectives.scores import Score
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.session import Session, start
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.driver import search
from gptailor_merge.search.optimizers.nevergrad import NevergradOptimizer, adapted
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space.space import Space

CONFIG = Path(__file__).parent.parent / "recipes" / "demo" / "search.yml"
CPU = torch.device("cpu")
DEFAULT = "default"
UNLIMITED = 100_000


@dataclass(frozen=True)
class Arm:
    """A search.

    Attributes:
        operations: what it has besides the default's operations.
        parents: of an evolution strategy like the default; None for the optimiser of that name.
        recombination: share of children that take layers from a second parent.
    """

    operations: dict[str, Any] = field(default_factory=dict)
    optimizer: str = DEFAULT
    population: int = 16
    parents: int | None = None
    recombination: float = 0.3


OPERATIONS = {
    DEFAULT: Arm(),
    "no merges": Arm({"merge": ()}),
    "outer: select": Arm({"outer": "select"}),
    "outer: merge": Arm({"outer": "merge"}),
    "neighbours: 1": Arm({"neighbours": 1}),
    "parts": Arm({"parts": True}),
    "all": Arm({"outer": "merge", "neighbours": 1, "parts": True}),
}
OPTIMIZERS = {
    DEFAULT: Arm(),
    "population 8, 2 parents": Arm(population=8),
    "population 8, 1 parent": Arm(population=8, parents=1),
    "population 32, 4 parents": Arm(population=32),
    "1 parent": Arm(parents=1),
    "4 parents": Arm(parents=4),
    "8 parents": Arm(parents=8),
    "no recombination": Arm(parents=2, recombination=0.0),
    "recombination 0.6": Arm(parents=2, recombination=0.6),
    "PortfolioDiscreteOnePlusOne": Arm(optimizer="PortfolioDiscreteOnePlusOne"),
    "DE": Arm(optimizer="DE"),
    "NGOpt": Arm(optimizer="NGOpt"),
}
GROUPS = {"operations": OPERATIONS, "optimizers": OPTIMIZERS}


class EnoughError(Exception):
    """As many tokens as the arm may score have been scored."""


def settings_of(arm: Arm, session: Session, seed: int, budget: int) -> SearchSettings:
    return SearchSettings(
        optimizer=arm.optimizer,
        budget=budget,
        population=arm.population,
        seed=seed,
        weights=session.settings.weights,
        fingerprint=session.settings.fingerprint,
    )


def optimizer_of(
    arm: Arm, space: Space, *, budget: int, population: int, seed: int, axes: Sequence[str]
) -> NevergradOptimizer:
    """An evolution strategy whose number of parents is known, so that it can be raced."""
    make = ng.optimizers.EvolutionStrategy(
        popsize=arm.parents, offsprings=arm.population, recombination_ratio=arm.recombination
    )
    return adapted(make, space, budget=budget, population=population, seed=seed, keeps=arm.parents)


def affordable(candidates: list[Candidate], tokens: int | None) -> list[Candidate]:
    """The first candidates, as many as that many tokens pay for."""
    spent = np.cumsum([candidate.tokens for candidate in candidates])
    return [c for c, so_far in zip(candidates, spent, strict=True) if tokens is None or so_far <= tokens]


def run(
    arm: Arm, space: Space, session: Session, seed: int, budget: int, tokens: int | None
) -> dict[str, Any]:
    """One search, and what it found.

    Args:
        budget: candidates, where `tokens` is None; else what the optimiser is told.
    """
    spent, begun = 0, time.perf_counter()

    def count(candidate: Candidate) -> None:
        nonlocal spent
        spent += candidate.tokens
        if tokens is not None and spent >= tokens:
            raise EnoughError

    with tempfile.TemporaryDirectory() as directory, Journal(Path(directory) / "journal.db") as journal:
        with suppress(EnoughError):
            settings = settings_of(arm, session, seed, budget)
            search(
                space,
                session.evaluator,
                journal,
                settings,
                make_optimizer=None if arm.parents is None else partial(optimizer_of, arm),
                on_candidate=count,
            )
        seconds = time.perf_counter() - begun
        candidates = affordable(list(journal.candidates()), tokens)
    best = min((c for c in candidates if c.status == Status.SCORED), key=lambda c: (c.loss, c.number))
    assert session.held_out is not None
    (by_set,) = session.held_out.score([best.plan])[0].scores.values()
    return {
        "searched": best.loss,
        "held_out": Score.total(list(by_set.values())).mean,
        "by_set": {name: score.mean for name, score in by_set.items()},
        "tokens": sum(c.tokens for c in candidates),
        "candidates": len(candidates),
        "best_at": best.number,
        "seconds": round(seconds, 1),
        "recipe": best.recipe,
    }


def budget_of(arm: Arm, session: Session, budget: int, tokens: int | None) -> int:
    """What an arm is told it may propose; an evolution strategy takes no notice of it."""
    if tokens is None:
        return budget
    raced = arm.optimizer == DEFAULT
    return UNLIMITED if raced else max(1, tokens // session.evaluator.passes.tokens)


def table_of(found: dict[str, dict[str, Any]], names: list[str], seeds: list[int]) -> Table:
    """Held-out losses by arm and seed, the mean with its spread, and differences from the default."""
    columns = ("", *(f"seed {seed}" for seed in seeds), "mean ± sd", "− default", "p", "better in")
    table = Table(*columns, "searched", "candidates", "seconds", box=box.MARKDOWN)
    reference = np.array([found[DEFAULT][str(seed)]["held_out"] for seed in seeds])
    for name in names:
        rows = [found[name][str(seed)] for seed in seeds]
        losses = np.array([row["held_out"] for row in rows])
        apart = losses - reference
        of = {key: np.mean([row[key] for row in rows]) for key in ("searched", "candidates", "seconds")}
        compared = ["", "", ""]
        if name != DEFAULT and len(seeds) > 1:
            p = ttest_rel(losses, reference).pvalue
            compared = [f"{apart.mean():+.4f}", f"{p:.3f}", f"{(apart < 0).sum()} of {len(seeds)}"]
        spread = losses.std(ddof=1) if len(seeds) > 1 else 0.0
        cells = [*(f"{loss:.4f}" for loss in losses), f"{losses.mean():.4f} ± {spread:.4f}", *compared]
        table.add_row(
            name, *cells, f"{of['searched']:.4f}", f"{of['candidates']:.0f}", f"{of['seconds']:.0f}"
        )
    return table


def main(
    group: Annotated[str, typer.Option(help="operations or optimizers.")] = "operations",
    arm: Annotated[list[str] | None, typer.Option(help="Only these, besides the default.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to N - 1.")] = 5,
    budget: Annotated[int | None, typer.Option(help="Candidates of the default; see the config.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Runs that were made.")] = None,
    config: Path = CONFIG,
) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    arms = GROUPS[group]
    names = [name for name in arms if not arm or name == DEFAULT or name in arm]
    read = SearchConfig.load(config)
    candidates = budget if budget is not None else read.search.budget
    found: dict[str, dict[str, Any]] = {}
    if json_file is not None and json_file.exists():
        found = json.loads(json_file.read_text())
    session = start(prepare(read), CPU)
    for seed in range(seeds):
        for name in names:
            if str(seed) in found.setdefault(name, {}):
                continue
            chosen = arms[name]
            tokens = None if name == DEFAULT else found[DEFAULT][str(seed)]["tokens"]
            section = Operations(**{**dict(read.operations), **chosen.operations})
            space = prepare(read.model_copy(update={"operations": section})).space
            told = budget_of(chosen, session, candidates, tokens)
            found[name][str(seed)] = made = run(chosen, space, session, seed, told, tokens)
            print(seed, name, {k: v for k, v in made.items() if k not in ("recipe", "by_set")}, flush=True)
            if json_file is not None:
                json_file.write_text(json.dumps(found, indent=1))
    Console(width=200).print(table_of(found, names, list(range(seeds))))


if __name__ == "__main__":
    typer.run(main)
