"""Edits of layers on the built-in family and their worth: repairs, and layers without attention or MLP.

    python benchmarks/edits.py --run RUN [--tokens N …] [--json FILE] [--tiny]

RUN is a run of `gptailor-evolve recipes/demo/search.yml`. Its recipe, and the base without its best
contiguous block of three layers (chosen on the calibration set), are repaired with maps fitted to N
tokens of the calibration set, at the cuts and everywhere. Then parts are left out of the base, one after
the other, each time the part that costs least per parameter on the calibration set, until as few
parameters are not zero as where three layers, chosen likewise one after the other, are removed. All
numbers are losses, nats per token, on the held-out set. With --tiny no RUN is needed: only the block is
repaired.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import DEMO, SEARCH, JsonFile, Tiny, best_of, held_out_losses, read_config
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge import Edit, Plan, Recipe, Session, open_session, plan, quiet_libraries
from gptailor_merge import repair as repair_recipe
from gptailor_merge.api.engine import PARTS, exit_of, with_edit

LENGTH = 3
"""Layers that are removed."""
TITLES = {"block": "The base without its best contiguous block", "found": "Found by gptailor-evolve"}
Rows = dict[str, dict[str, float]]


def best_block(session: Session) -> Recipe:
    """Returns the base without the block of layers that is missed least."""
    starts = range(1, session.space.depth - LENGTH)
    plans = [session.select(0, set(range(first, first + LENGTH))) for first in starts]
    return session.recipe(best_of(session, plans))


def repairs(recipe: Recipe, tokens: list[int], length: int) -> Iterator[tuple[str, Recipe, float]]:
    """Yields what was done, the repaired recipe, and the seconds that it took."""
    data = [str(file) for file in sorted((DEMO / "calibration").glob("*.jsonl"))]
    for everywhere in (False, True):
        for count in tokens:
            begun = time.monotonic()
            result = repair_recipe(
                recipe,
                data,
                tempfile.mkdtemp(),
                everywhere=everywhere,
                tokens=count,
                sequence_length=length,
                device="cpu",
            )
            where = "everywhere" if everywhere else "at the cuts"
            yield f"repaired {where}, {count:,} tokens", result.recipe, time.monotonic() - begun


def greedy_layers(session: Session) -> tuple[Plan, int]:
    """Returns the base without three layers, chosen one after the other, and its parameters."""
    removed: set[int] = set()
    for _ in range(LENGTH):
        left = [layer for layer in range(session.space.depth) if layer not in removed]
        losses = session.losses([session.select(0, {*removed, layer}) for layer in left])
        removed.add(left[losses.index(min(losses))])
    pruned = session.select(0, removed)
    return pruned, session.family.parameters(pruned.kept)


def greedy_parts(session: Session, size: int) -> tuple[Plan, int, int]:
    """Returns the base without parts, chosen one after the other; their number; the parameters that are left.

    Args:
        size: ends when no more parameters are left.
    """
    family = session.family
    whole = session.select(0, {0})
    slots = tuple(replace(whole.slots[0], layers=((family.base.model, i),)) for i in range(family.depth))
    plan, left = replace(whole, slots=slots), family.parameters(range(family.depth))
    (loss,) = session.losses([plan])
    for count in range(1, 2 * family.depth + 1):
        parts = [
            (layer, part)
            for layer in range(family.depth)
            for part in PARTS
            if Edit(part) not in plan.slots[layer].edits
        ]
        plans = [with_edit(plan, layer, Edit(part)) for layer, part in parts]
        losses = session.losses(plans)
        sizes = [part_size(session, layer, part) for layer, part in parts]
        rates = [(after - loss) / removed for after, removed in zip(losses, sizes, strict=True)]
        best = rates.index(min(rates))
        plan, loss, left = plans[best], losses[best], left - sizes[best]
        if left <= size:
            return plan, count, left
    raise SystemExit("nothing is left")


def part_size(session: Session, layer: int, part: str) -> int:
    """Counts the parameters of an attention or an MLP."""
    base = session.family.base
    (name, *_) = exit_of(base.config, layer, part).tensors
    shapes = base.architecture.layers[layer]
    block = name.split(".")[0] + "."
    return sum(torch.Size(shape).numel() for inner, shape in shapes.items() if inner.startswith(block))


def draw(rows: Rows, title: str) -> Table:
    columns = list(next(iter(rows.values())))
    table = Table("", *columns, box=box.SIMPLE, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    return table


def main(
    run: Annotated[Path | None, typer.Option(help="A run of the demo search.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens that maps are fitted to.")] = None,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    if run is None and not tiny:
        raise typer.BadParameter("--run RUN is missing; gptailor-evolve recipes/demo/search.yml makes it")
    config = read_config(SEARCH, tiny=tiny)
    session = open_session(config, device="cpu")
    console = Console(width=110)
    counts, length = ([512], 32) if tiny else (tokens or [4096, 16384, 65536], 256)
    results: dict[str, Any] = {}
    recipes = {"block": best_block(session)}
    if run is not None:
        recipes["found"] = Recipe.load(run / "best.yml")
    for name, recipe in recipes.items():
        rows: Rows = {"as it is": held_out_losses(session, plan(recipe))}
        seconds = {}
        for label, repaired, spent in repairs(recipe, counts, length):
            rows[label], seconds[label] = held_out_losses(session, plan(repaired)), spent
        console.print(draw(rows, TITLES[name]))
        console.print("seconds", {label: round(spent) for label, spent in seconds.items()})
        results[name] = {"losses": rows, "seconds": seconds}
    pruned, size = greedy_layers(session)
    emptied, count, left = greedy_parts(session, size)
    rows = {
        f"without {LENGTH} layers": held_out_losses(session, pruned),
        f"without {count} parts": held_out_losses(session, emptied),
    }
    console.print(draw(rows, "The base, chosen greedily"))
    console.print(
        f"parameters that are not zero: {size:,} and {left:,}; parameters that are stored: {size:,}"
    )
    parts = [(layer, edit.part) for layer, slot in enumerate(emptied.slots) for edit in slot.edits]
    console.print("layers", pruned.kept, "parts left out", parts)
    results["greedy"] = {"losses": rows, "parts": parts, "layers": pruned.kept, "not_zero": [size, left]}
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
