"""Does it pay? Operations of the search space, and settings of the optimiser, each on its own.

    python benchmarks/operations.py [--group operations|optimizers] [--arm NAME …] [--seeds N]
                                    [--budget N] [--json FILE] [--tiny]

Every arm searches the built-in family with the same seeds. The default proposes `--budget` candidates;
all other arms stop when they have scored as many tokens as the default did with that seed. Of each run
the recipe with the lowest searched loss is scored on the held-out set, which nothing was chosen by.
The table shows held-out losses (nats per token), and differences from the default, seed by seed. With
--json, runs that the file holds are not run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import nevergrad as ng
import numpy as np
import torch
import typer
from common import SEARCH, Config, JsonFile, Tiny, held_out_losses, read_config
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_rel

from gptailor_merge import Session, Space, Status, open_session, quiet_libraries, recipe_of, space_of
from gptailor_merge.api.engine import Operations, Optimizer, OptimizerFactory, adapted

DEFAULT = "default"
UNLIMITED = 100_000


@dataclass(frozen=True)
class Arm:
    """One of the searches that are compared.

    Attributes:
        operations: settings of the section `operations` that differ from the default's.
        optimizer: name of an optimiser, where `parents` is None.
        parents: number of parents of an evolution strategy like the default one.
        recombination: share of its children that take layers from a second parent.
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


def make_optimizer(arm: Arm) -> OptimizerFactory | None:
    """Returns a factory of an arm's evolution strategy; None where it takes an optimiser by name."""
    if arm.parents is None:
        return None
    strategy = ng.optimizers.EvolutionStrategy(
        popsize=arm.parents, offsprings=arm.population, recombination_ratio=arm.recombination
    )

    def make(space: Space, *, budget: int, population: int, seed: int, axes: Sequence[str] = ()) -> Optimizer:
        return adapted(strategy, space, budget=budget, population=population, seed=seed, keeps=arm.parents)

    return make


def run(
    arm: Arm, space: Space, session: Session, seed: int, budget: int, tokens: int | None
) -> dict[str, Any]:
    """Searches once and tells what was found.

    Args:
        budget: number of candidates, where `tokens` is None; else what the optimiser is told.
    """
    begun = time.perf_counter()
    trace = session.search(
        space=space,
        optimizer=arm.optimizer,
        population=arm.population,
        make_optimizer=make_optimizer(arm),
        budget=budget,
        seed=seed,
        tokens=tokens,
    )
    seconds = time.perf_counter() - begun
    candidates = trace.affordable(tokens)
    scored = [candidate for candidate in candidates if candidate.status == Status.SCORED]
    if not scored:
        raise SystemExit(f"{tokens} tokens pay for no candidate of the target size; give a larger --budget")
    best = min(scored, key=lambda candidate: (candidate.loss, candidate.number))
    losses = held_out_losses(session, best.plan)
    return {
        "searched": best.loss,
        "held_out": losses["mean"],
        "by_set": {name: loss for name, loss in losses.items() if name != "mean"},
        "tokens": sum(candidate.tokens for candidate in candidates),
        "candidates": len(candidates),
        "best_at": best.number,
        "seconds": round(seconds, 1),
        "recipe": recipe_of(best).to_yaml(),
    }


def budget_of(arm: Arm, session: Session, budget: int, tokens: int | None) -> int:
    """Returns the number of candidates that an arm may propose; an evolution strategy does not look at it."""
    if tokens is None:
        return budget
    return UNLIMITED if arm.optimizer == DEFAULT else max(1, tokens // session.tokens)


def table_of(runs: dict[str, dict[str, Any]], names: list[str], seeds: list[int]) -> Table:
    """Draws held-out losses by arm and seed, the mean with its spread, and differences from the default."""
    columns = ("", *(f"seed {seed}" for seed in seeds), "mean ± sd", "− default", "p", "better in")
    table = Table(*columns, "searched", "candidates", "seconds", box=box.MARKDOWN)
    reference = np.array([runs[DEFAULT][str(seed)]["held_out"] for seed in seeds])
    for name in names:
        rows = [runs[name][str(seed)] for seed in seeds]
        losses = np.array([row["held_out"] for row in rows])
        apart = losses - reference
        means = {key: np.mean([row[key] for row in rows]) for key in ("searched", "candidates", "seconds")}
        compared = ["", "", ""]
        if name != DEFAULT and len(seeds) > 1:
            p = ttest_rel(losses, reference).pvalue
            compared = [f"{apart.mean():+.4f}", f"{p:.3f}", f"{(apart < 0).sum()} of {len(seeds)}"]
        spread = losses.std(ddof=1) if len(seeds) > 1 else 0.0
        cells = [*(f"{loss:.4f}" for loss in losses), f"{losses.mean():.4f} ± {spread:.4f}", *compared]
        table.add_row(
            *(name, *cells, f"{means['searched']:.4f}"),
            *(f"{means['candidates']:.0f}", f"{means['seconds']:.0f}"),
        )
    return table


def main(
    group: Annotated[str, typer.Option(help="What the arms differ in: operations or optimizers.")] = (
        "operations"
    ),
    arm: Annotated[
        list[str] | None, typer.Option(help="Run this arm besides the default; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 5,
    budget: Annotated[
        int | None, typer.Option(help="Candidates of the default arm; replaces the config's.")
    ] = None,
    json_file: JsonFile = None,
    config: Config = SEARCH,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    if tiny:
        seeds, arm = 1, arm or ["parts", "1 parent", "DE"]
    arms = GROUPS[group]
    names = [name for name in arms if not arm or name == DEFAULT or name in arm]
    search_config = read_config(config, tiny=tiny)
    candidates = budget if budget is not None else search_config.search.budget
    runs: dict[str, dict[str, Any]] = {}
    if json_file is not None and json_file.exists():
        runs = json.loads(json_file.read_text())
    session = open_session(search_config, device="cpu")
    for seed in range(seeds):
        for name in names:
            if str(seed) in runs.setdefault(name, {}):
                continue
            chosen = arms[name]
            # Few tokens would all go into probes: tiny arms propose as many candidates as the default.
            tokens = None if tiny or name == DEFAULT else runs[DEFAULT][str(seed)]["tokens"]
            section = Operations(**{**dict(search_config.operations), **chosen.operations})
            space = space_of(search_config.model_copy(update={"operations": section}))
            proposed = budget_of(chosen, session, candidates, tokens)
            result = run(chosen, space, session, seed, proposed, tokens)
            runs[name][str(seed)] = result
            shown = {key: value for key, value in result.items() if key not in ("recipe", "by_set")}
            print(seed, name, shown, flush=True)
            if json_file is not None:
                json_file.write_text(json.dumps(runs, indent=1))
    Console(width=200).print(table_of(runs, names, list(range(seeds))))


if __name__ == "__main__":
    typer.run(main)
