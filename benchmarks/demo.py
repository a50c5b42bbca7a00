"""The demo: search the built-in family, write and verify the model, and print before and after.

    python benchmarks/demo.py --out RUN [--budget N] [--seed N]

Beside the found recipe stand two baselines, chosen on the same calibration set as the search chose:
the best of as many random recipes of the same space, and the best contiguous block to drop from the
base; and what the search had found before it repaired anything. The table shows losses (nats per
token) on the held-out set, which no arm has seen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.config import SearchConfig
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.session import start
from gptailor_merge.runs.summary import FOUND, summarize
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.search.candidates import Status
from gptailor_merge.search.outcomes import loss
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space.space import Space

CONFIG = Path(__file__).parent.parent / "recipes" / "demo" / "search.yml"
CPU = torch.device("cpu")
FOUND_LABEL = "found by gptailor-evolve"
PLAIN_LABEL = "the same search, not repaired"


def random_recipes(space: Space, count: int, seed: int) -> list[Plan]:
    rng = np.random.RandomState(seed)
    return [space.decode(space.random(rng)) for _ in range(count)]


def contiguous_blocks(space: Space) -> list[Plan]:
    """The base without a block of neighbouring layers, at every place that protection leaves."""
    length = space.depth - space.sizes[0]
    plans = []
    for first in range(space.depth - length + 1):
        block = range(first, first + length)
        if set(block) <= set(space.removable):
            plans.append(space.select(0, set(block)))
    return plans


def best_of(plans: list[Plan], evaluator: Evaluator, settings: SearchSettings) -> Plan:
    losses = [loss(outcome.scores, settings.weights) for outcome in evaluator.score(plans)]
    return plans[int(np.argmin(losses))]


def row(scores: Scores) -> list[float]:
    (by_set,) = scores.values()
    return [score.mean for score in by_set.values()] + [Score.total(list(by_set.values())).mean]


def main(
    out: Annotated[Path, typer.Option(help="The run directory; an earlier demo there is replaced.")],
    budget: Annotated[int | None, typer.Option(help="Candidates, and as many random recipes.")] = None,
    seed: int = 0,
) -> None:
    quiet_libraries()
    begun = time.monotonic()
    run = Run(out)
    if run.journal.exists():
        shutil.rmtree(out)
    config = SearchConfig.load(CONFIG).override(budget=budget, seed=seed)
    # The search runs as a user runs it; the baselines are scored meanwhile, on the other core.
    evolve = Path(sys.executable).parent / "gptailor-evolve"
    command = [str(evolve), str(CONFIG), "--out", str(out), "--seed", str(seed), "--device", "cpu"]
    print("$ gptailor-evolve", *command[1:], flush=True)
    search = subprocess.Popen([*command, "--budget", str(config.search.budget)], stdout=subprocess.DEVNULL)

    prepared = prepare(config)
    session = start(prepared, CPU)
    assert session.held_out is not None
    chosen = {
        "best contiguous block dropped": contiguous_blocks(prepared.space),
        f"best of {config.search.budget} random": random_recipes(prepared.space, config.search.budget, seed),
    }
    baselines = {n: best_of(recipes, session.evaluator, session.settings) for n, recipes in chosen.items()}
    baseline_rows = {n: row(session.held_out.score([p])[0].scores) for n, p in baselines.items()}
    if search.wait() != 0:
        raise SystemExit(search.returncode)

    record = run.record()
    summary, scores = summarize(record), record.held_out
    finished = [candidate for candidate in record.finished if candidate.status != Status.REPAIRED]
    plain = plan(min(finished, key=lambda candidate: candidate.loss or 0.0).parsed)
    baseline_rows[PLAIN_LABEL] = row(session.held_out.score([plain])[0].scores)
    held_out = {model: row(of_model) for model, of_model in scores.items() if model != FOUND}
    rows = {**held_out, **baseline_rows, FOUND_LABEL: row(scores[FOUND])}
    (texts,) = scores[FOUND].values()
    table = Table(
        "",
        "layers",
        "parameters",
        *texts,
        "mean",
        box=box.SIMPLE,
        title_justify="left",
        title="Held-out loss, nats per token (lower is better)",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, losses in rows.items():
        size = summary.sizes["base" if name in held_out else FOUND]
        style = "bold" if name == FOUND_LABEL else None
        table.add_row(name, str(size[0]), f"{size[1]:,}", *(f"{x:.3f}" for x in losses), style=style)
        if name == list(held_out)[-1]:
            table.add_section()
    Console(width=120).print(table)
    pruned = {name: losses[-1] for name, losses in rows.items() if name not in held_out}
    print(f"recipe  {run.best}\nmodel   {run.model}  (written by mergekit, reloaded and verified)")
    print(f"{time.monotonic() - begun:.0f} s")
    if min(pruned, key=pruned.__getitem__) != FOUND_LABEL:
        raise SystemExit("the found model is not the best of the pruned ones")


if __name__ == "__main__":
    typer.run(main)
