"""The demo: search the built-in family, write and verify the model, and print before and after.

    python benchmarks/demo.py --out RUN [--budget N] [--seed N] [--tiny]

Beside the found recipe stand two baselines, chosen on the same calibration set as the search chose:
the best of as many random recipes of the same space, and the best contiguous block to drop from the
base; and what the search had found before it repaired anything. The table shows losses (nats per
token) on the held-out set, which no arm has seen.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from common import SEARCH, Tiny, best_of, held_out_losses, losses_of, random_plans, read_config
from rich import box
from rich.console import Console
from rich.table import Table

import gptailor_merge
from gptailor_merge import Plan, Run, Session, Status, open_session, quiet_libraries

FOUND = "found by gptailor-evolve"
NOT_REPAIRED = "the same search, not repaired"


def contiguous_blocks(session: Session) -> list[Plan]:
    """Returns the base without a block of neighbouring layers, at every place that protection leaves."""
    space = session.space
    length = space.depth - space.sizes[0]
    blocks = (set(range(first, first + length)) for first in range(space.depth - length + 1))
    return [session.select(0, block) for block in blocks if block <= set(space.removable)]


def best_before_repair(run: Run) -> Plan:
    """Returns the best recipe of a run that is not repaired."""
    plain = [candidate for candidate in run.record().finished if candidate.status != Status.REPAIRED]
    return min(plain, key=lambda candidate: candidate.loss or 0.0).plan


def table_of(rows: dict[str, dict[str, float]], sizes: dict[str, tuple[int, int]], members: int) -> Table:
    """Draws the losses of all models.

    Args:
        members: how many of the rows are whole members.
    """
    columns = list(rows[FOUND])
    table = Table(
        *("", "layers", "parameters", *columns),
        box=box.SIMPLE,
        title_justify="left",
        title="Held-out loss, nats per token (lower is better)",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for number, (name, losses) in enumerate(rows.items(), start=1):
        layers, parameters = sizes["base" if number <= members else "found"]
        style = "bold" if name == FOUND else None
        table.add_row(
            name,
            str(layers),
            f"{parameters:,}",
            *(f"{losses[column]:.3f}" for column in columns),
            style=style,
            end_section=number == members,
        )
    return table


def main(
    out: Annotated[Path, typer.Option(help="The run directory; an earlier demo there is replaced.")],
    budget: Annotated[int | None, typer.Option(help="Candidates, and as many random recipes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search and of the random recipes.")] = 0,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    begun = time.monotonic()
    if Run(out).config.exists():
        shutil.rmtree(out)
    config = read_config(SEARCH, tiny=tiny).override(budget=budget, seed=seed)
    count = config.search.budget
    print(f"gptailor_merge.search({SEARCH.name!r}, {str(out)!r}, budget={count}, seed={seed})", flush=True)
    run = gptailor_merge.search(
        config, out, device="cpu", on_step=lambda step: print(step, file=sys.stderr, flush=True)
    )

    session = open_session(config, device="cpu")
    baselines = {
        "best contiguous block dropped": best_of(session, contiguous_blocks(session)),
        f"best of {count} random": best_of(session, random_plans(session, count, seed)),
        NOT_REPAIRED: best_before_repair(run),
    }
    held_out = {model: losses_of(scores) for model, scores in run.record().held_out.items()}
    found = held_out.pop("found")
    pruned = {name: held_out_losses(session, plan) for name, plan in baselines.items()} | {FOUND: found}
    table = table_of({**held_out, **pruned}, dict(run.summary().sizes), len(held_out))
    Console(width=120).print(table)
    print(f"recipe  {run.best}\nmodel   {run.model}  (written by mergekit, reloaded and verified)")
    print(f"{time.monotonic() - begun:.0f} s")
    best = min(pruned, key=lambda name: pruned[name]["mean"])
    if best != FOUND and not tiny:
        raise SystemExit(f"the found model is not the best of the pruned ones: {best} is")


if __name__ == "__main__":
    typer.run(main)
