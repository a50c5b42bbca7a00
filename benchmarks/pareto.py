"""The front of a search over sizes, against random recipes of every size.

    python benchmarks/pareto.py --out RUN [--config FILE] [--budget N] [--seed N] [--per-size N] [--reuse]
                                [--json FILE] [--tiny]

`gptailor-evolve` searches the built-in family on two task objectives and the number of parameters. Then,
for every size of its front, as many random recipes of that size as the search scored (or `--per-size`)
are scored on the same items, and the one with the best sum of the two objectives is kept. Both are
compared on items that neither was chosen by: the margin (nats) that is searched on, and the accuracy. The
front's recipe of a size is, likewise, the one with the best sum on the searched items; how many others of
the front are dominated by the random one, in both held-out margins, is told beside.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import TASKS, Config, JsonFile, Tiny, read_config
from rich import box
from rich.console import Console
from rich.table import Table

import gptailor_merge
from gptailor_merge import Candidate, Plan, Run, Session, open_session, quiet_libraries
from gptailor_merge.api.engine import Race, Scores, dominates, natural, plan_of

GENERATION = 32


@dataclass(frozen=True)
class Comparison:
    """Held-out scores of one size, in natural units.

    Attributes:
        found: scores of the front's recipe with the best sum on the searched items.
        random: scores of the best random recipe.
        of_size: number of recipes of this size on the front.
        dominated: how many of them are worse than the random one in both margins.
    """

    layers: int
    random_recipes: int
    found: Mapping[str, Mapping[str, float]]
    random: Mapping[str, Mapping[str, float]]
    of_size: int
    dominated: int

    @property
    def won(self) -> bool:
        """True where the found recipe has the better sum of margins."""
        return sum(shown_margins(self.found)) > sum(shown_margins(self.random))


def best_random(session: Session, size: int, count: int, seed: int) -> Plan:
    """Returns the best of random recipes of one size by the weighted sum; a race does not change it."""
    rng = np.random.RandomState([seed, size])
    space = replace(session.space, sizes=(size,), patterns={})
    drawn = (plan_of(space.decode(space.random(rng))) for _ in range(count))
    plans = list({drawing.digest: drawing for drawing in drawn}.values())
    losses: dict[float, Plan] = {}
    for first in range(0, len(plans), GENERATION):
        generation = plans[first : first + GENERATION]
        outcomes = session.score(generation, Race(1, session.weights))
        for drawing, outcome in zip(generation, outcomes, strict=True):
            if outcome.cause is None and outcome.estimate is None:
                losses.setdefault(session.loss(outcome.scores), drawing)
    return losses[min(losses)]


def margins(scores: Scores) -> tuple[float, ...]:
    """Returns the held-out margins with the sign that is minimised."""
    return tuple(-margin for margin in shown_margins(natural(scores)))


def shown_margins(scores: Mapping[str, Mapping[str, float]]) -> list[float]:
    """Returns the margins among scores in natural units."""
    return [by_set["total"] for name, by_set in scores.items() if name.startswith("margin")]


def compare(
    session: Session, candidates: Sequence[Candidate], counts: Mapping[int, int], seed: int
) -> list[Comparison]:
    """Compares the recipes of the front with random ones, size by size.

    Args:
        candidates: the recipes of the front.
        counts: size -> number of random recipes.
    """
    comparisons = []
    for size in sorted({len(candidate.plan.slots) for candidate in candidates}):
        of_size = [candidate for candidate in candidates if len(candidate.plan.slots) == size]
        of_size.sort(key=lambda candidate: session.loss(candidate.scores))
        random = best_random(session, size, counts[size], seed)
        *scores, random_scores = session.held_out([*(candidate.plan for candidate in of_size), random])
        comparisons.append(
            Comparison(
                size,
                counts[size],
                natural(scores[0]),
                natural(random_scores),
                len(of_size),
                sum(dominates(margins(random_scores), margins(found)) for found in scores),
            )
        )
    return comparisons


def table_of(comparisons: Sequence[Comparison]) -> Table:
    measures = list(comparisons[0].found)
    columns = [f"{measure}: {which}" for measure in measures for which in ("found", "random")]
    title = "Held-out items: the front's recipes against the best of random ones"
    table = Table("layers", *columns, "of the size", "dominated", title=title, box=box.SIMPLE)
    for row in comparisons:
        values = [f"{scores[m]['total']:.4f}" for m in measures for scores in (row.found, row.random)]
        table.add_row(str(row.layers), *values, str(row.of_size), str(row.dominated))
    return table


def main(
    out: Annotated[Path, typer.Option(help="The run directory; an earlier one there is replaced.")],
    config: Config = TASKS,
    budget: Annotated[int | None, typer.Option(help="Candidates; replaces the config's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search and of the random recipes.")] = 0,
    per_size: Annotated[int | None, typer.Option(help="Random recipes of each size.")] = None,
    reuse: Annotated[bool, typer.Option("--reuse", help="Compare the run that is in --out.")] = False,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    run = Run(out)
    if run.config.exists() and not reuse:
        shutil.rmtree(out)
    settings = read_config(config, tiny=tiny).override(
        budget=budget, seed=seed, repair=not tiny, tune=not tiny
    )
    if tiny and per_size is None:
        per_size = 2
    if sum(getattr(objective, "weight", None) is not None for objective in settings.objectives) != 2:
        raise SystemExit(f"{config}: expected two objectives besides the cost")
    if not reuse:
        print(f"gptailor_merge.search({config.name!r}, {str(out)!r}, seed={seed})", flush=True)
        run = gptailor_merge.search(
            settings, out, device="cpu", model=False, on_step=lambda step: print(step, file=sys.stderr)
        )
    session = open_session(settings, device="cpu")
    record = run.record()
    finished = record.finished
    front = [point.candidate for point in record.front]
    searched = Counter(len(candidate.plan.slots) for candidate in finished)
    comparisons = compare(session, front, {size: per_size or n for size, n in searched.items()}, seed)
    Console(width=180).print(table_of(comparisons))
    for gap in run.summary().gaps:
        print(
            f"{gap.objective} on {', '.join(gap.sets)}: search {gap.searched:.4f}, held out "
            f"{gap.held_out:.4f}, gap {gap.difference:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        )
    if json_file:
        figures: dict[str, Any] = {"budget": settings.search.budget, "seed": seed}
        json_file.write_text(json.dumps({**figures, "sizes": list(map(vars, comparisons))}, indent=1))
    won = sum(comparison.won for comparison in comparisons)
    print(f"a front of {len(front)} recipes, {len(comparisons)} sizes; better than random in {won} of them")
    if not tiny and (len(comparisons) < 5 or won < len(comparisons)):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
