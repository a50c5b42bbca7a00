"""The front of a search over sizes, against random recipes of every size.

    python benchmarks/pareto.py --out RUN [--config FILE] [--budget N] [--seed N] [--per-size N] [--reuse]
                                [--json FILE]

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
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.config import SearchConfig
from gptailor_merge.objectives.scores import Scores, Weights, natural
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.session import Session, start
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.racing import Race
from gptailor_merge.search.front import FrontCandidate, dominates, front
from gptailor_merge.search.outcomes import loss
from gptailor_merge.space.space import Space

CONFIG = Path(__file__).parent.parent / "recipes" / "demo" / "tasks.yml"
CPU = torch.device("cpu")


def best_random(
    space: Space, size: int, count: int, seed: int, evaluator: Evaluator, weights: Weights
) -> Plan:
    """The best of random recipes of one size by the weighted sum; a race keeps the choice the same."""
    rng = np.random.RandomState([seed, size])
    of_size = replace(space, sizes=(size,), patterns={})
    plans = list({p.digest: p for p in (of_size.decode(of_size.random(rng)) for _ in range(count))}.values())
    best: tuple[float, Plan] | None = None
    for first in range(0, len(plans), 32):
        some = plans[first : first + 32]
        for made, outcome in zip(some, evaluator.score(some, Race(1, weights)), strict=True):
            if outcome.cause is None and outcome.estimate is None:
                found = loss(outcome.scores, weights)
                best = (found, made) if best is None or found < best[0] else best
    assert best is not None
    return best[1]


def margins(scores: Scores) -> tuple[float, ...]:
    """What is minimised of the margins that are held out."""
    return tuple(-natural(scores)[name]["total"] for name in scores if name.startswith("margin"))


def compare(
    space: Space, session: Session, points: Sequence[FrontCandidate], counts: Mapping[int, int], seed: int
) -> list[dict[str, Any]]:
    assert session.held_out is not None
    weights = session.settings.weights
    rows = []
    for size in sorted({point.layers for point in points}):
        some = [point for point in points if point.layers == size]
        some.sort(key=lambda point: loss(point.candidate.scores, weights))
        random = best_random(space, size, counts[size], seed, session.evaluator, weights)
        plans = [*(point.candidate.plan for point in some), random]
        *ours, theirs = (outcome.scores for outcome in session.held_out.score(plans))
        rows.append(
            {
                "layers": size,
                "random_recipes": counts[size],
                "found": natural(ours[0]),
                "random": natural(theirs),
                "of_size": len(some),
                "dominated": sum(dominates(margins(theirs), margins(one)) for one in ours),
            }
        )
    return rows


def main(
    out: Annotated[Path, typer.Option(help="The run directory; an earlier one there is replaced.")],
    config: Path = CONFIG,
    budget: Annotated[int | None, typer.Option(help="Candidates; replaces the config's.")] = None,
    seed: int = 0,
    per_size: Annotated[int | None, typer.Option(help="Random recipes of each size.")] = None,
    reuse: Annotated[bool, typer.Option("--reuse", help="Compare a run that is there.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    quiet_libraries()
    run = Run(out)
    if run.journal.exists() and not reuse:
        shutil.rmtree(out)
    settings = SearchConfig.load(config).override(budget=budget, seed=seed)
    if sum(not one.is_cost for one in settings.objectives) != 2:
        raise SystemExit(f"{config}: expected two objectives besides the cost")
    command = [
        str(Path(sys.executable).parent / "gptailor-evolve"),
        str(config),
        "--out",
        str(out),
        "--no-model",
    ]
    command += ["--budget", str(settings.search.budget), "--seed", str(seed), "--device", "cpu"]
    if not reuse:
        print("$ gptailor-evolve", *command[1:], flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    prepared = prepare(settings)
    session = start(prepared, CPU)
    finished = run.record().finished
    points = front(finished, session.settings.axes)
    searched = Counter(len(candidate.plan.slots) for candidate in finished)
    counts = {size: per_size or count for size, count in searched.items()}
    rows = compare(prepared.space, session, points, counts, seed)
    measures = list(rows[0]["found"])
    whose = [f"{name}: {who}" for name in measures for who in ("found", "random")]
    title = "Held-out items: the front's recipes against the best of random ones"
    table = Table("layers", *whose, "of the size", "dominated", title=title, box=box.SIMPLE)
    for row in rows:
        values = [f"{row[who][name]['total']:.4f}" for name in measures for who in ("found", "random")]
        table.add_row(str(row["layers"]), *values, str(row["of_size"]), str(row["dominated"]))
    Console(width=180).print(table)
    for one in run.summary().gaps:
        print(
            f"{one.objective} on {', '.join(one.sets)}: search {one.searched:.4f}, held out "
            f"{one.held_out:.4f}, gap {one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        )
    if json_file:
        json_file.write_text(
            json.dumps({"budget": settings.search.budget, "seed": seed, "sizes": rows}, indent=1)
        )
    won = sum(sum(margins_of(row["found"])) > sum(margins_of(row["random"])) for row in rows)
    print(f"a front of {len(points)} recipes, {len(rows)} sizes; better than random in {won} of them")
    if len(rows) < 5 or won < len(rows):
        raise SystemExit(1)


def margins_of(scores: dict[str, dict[str, float]]) -> list[float]:
    return [by_set["total"] for name, by_set in scores.items() if name.startswith("margin")]


if __name__ == "__main__":
    typer.run(main)
