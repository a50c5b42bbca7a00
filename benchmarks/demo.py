"""The demo: search the built-in family, write and verify the model, and print before and after.

    python benchmarks/demo.py --out RUN [--budget N] [--seed N] [--tiny]

The table has what the search found, and what that came to when it was repaired and, if the config says so,
tuned. Beside it stand rivals that were chosen on the same calibration set: the best contiguous block to drop
from the base; and the best merge of the whole family, pruned by ShortGPT, then repaired and tuned as ours.
It shows losses (nats per token) on the held-out set, which no arm has seen.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from common import SEARCH, Tiny, best_of, held_out_losses, least_tune, losses_of, read_config
from quality_methods import Methods
from rich import box
from rich.console import Console
from rich.table import Table
from treatment import repaired, tuned

import gptailor_merge
from gptailor_merge import Plan, Run, SearchConfig, Session, Status, open_session, plan, quiet_libraries

FOUND, REPAIRED, TUNED = "found by gptailor-evolve", ", repaired", ", tuned"
NOISE = 0.01
"""Differences in nats per token that a calibration set of a few thousand tokens cannot tell from none."""

BLOCK, RIVAL = "best contiguous block dropped", "one merge + ShortGPT"


def contiguous_blocks(session: Session) -> list[Plan]:
    """Returns the base without a block of neighbouring layers, at every place that protection leaves."""
    space = session.space
    length = space.depth - space.sizes[0]
    blocks = (set(range(first, first + length)) for first in range(space.depth - length + 1))
    return [session.select(0, block) for block in blocks if block <= set(space.removable)]


def stages_of(run: Run, config: SearchConfig) -> dict[str, Plan]:
    """Returns the best recipe of a run when it had searched, repaired and tuned."""
    finished = run.record().finished

    def best(without: tuple[Status, ...]) -> Plan:
        known = [candidate for candidate in finished if candidate.status not in without]
        return min(known, key=lambda candidate: candidate.loss or 0.0).plan

    stages = {FOUND: best((Status.REPAIRED, Status.TUNED))}
    if config.repair.finalists:
        stages[f"{[*stages][-1]}{REPAIRED}"] = best((Status.TUNED,))
    if config.tuned:
        stages[f"{[*stages][-1]}{TUNED}"] = best(())
    return stages


def rivals(session: Session, directory: Path) -> dict[str, Plan]:
    """Returns the best merge of the family, pruned by ShortGPT, as it is, repaired, and tuned."""
    recipe = Methods(session, session.config.seed).best_merge[1].steps[-1].recipe
    name, stages = RIVAL, {RIVAL: plan(recipe)}
    for ending, treat, finalists in (
        (REPAIRED, repaired, session.config.repair.finalists),
        (TUNED, tuned, session.config.tuned),
    ):
        if finalists:
            recipe, _ = treat(session, recipe, directory)
            name = f"{name}{ending}"
            stages[name] = plan(recipe)
    return stages


def table_of(
    rows: dict[str, dict[str, float]], sizes: dict[str, tuple[int, int]], members: int, best: str
) -> Table:
    """Draws the losses of all models.

    Args:
        members: how many of the rows are whole members.
        best: the row that is printed bold.
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
        style = "bold" if name == best else None
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
    budget: Annotated[int | None, typer.Option(help="Candidates.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    begun = time.monotonic()
    if Run(out).config.exists():
        shutil.rmtree(out)
    config = read_config(SEARCH, tiny=tiny).override(budget=budget, seed=seed)
    if tiny:  # whether the demo tunes or not
        config = config.model_copy(update={"tune": least_tune(config.tune)})
    count = config.search.budget
    print(f"gptailor_merge.search({SEARCH.name!r}, {str(out)!r}, budget={count}, seed={seed})", flush=True)
    run = gptailor_merge.search(
        config, out, device="cpu", on_step=lambda step: print(step, file=sys.stderr, flush=True)
    )

    session = open_session(config, device="cpu")
    stages = stages_of(run, config)
    with tempfile.TemporaryDirectory() as directory:
        plans = {
            BLOCK: best_of(session, contiguous_blocks(session)),
            **rivals(session, Path(directory)),
            **stages,
        }
        pruned = {name: held_out_losses(session, plan) for name, plan in plans.items()}
    held_out = {model: losses_of(scores) for model, scores in run.record().held_out.items()}
    del held_out["found"]
    best = [*stages][-1]
    table = table_of({**held_out, **pruned}, dict(run.summary().sizes), len(held_out), best)
    Console(width=120).print(table)
    print(f"recipe  {run.best}\nmodel   {run.model}  (written by mergekit, reloaded and verified)")
    print(f"{time.monotonic() - begun:.0f} s")
    lowest = min(pruned, key=lambda name: pruned[name]["mean"])
    behind = pruned[best]["mean"] - pruned[lowest]["mean"]
    if behind > NOISE and not tiny:
        raise SystemExit(f"{lowest} is {behind:.3f} nats better than the model that was found and refined")


if __name__ == "__main__":
    typer.run(main)
