"""What edits of layers are worth on the built-in family: repairs, and layers without attention or MLP.

    python benchmarks/edits.py --run RUN [--tokens N …] [--json FILE]

RUN is a run of `gptailor-evolve recipes/demo/search.yml`. Its recipe, and the base without its best
contiguous block of three layers (chosen on the calibration set), are repaired with maps fitted to N
tokens of the calibration set, at the cuts and everywhere. Then parts are left out of the base, one after
the other, each time the part that costs least per parameter on the calibration set, until as few
parameters are not zero as where three layers, chosen likewise one after the other, are removed. All
numbers are losses, nats per token, on the held-out set.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.composing.exits import exit_of
from gptailor_merge.config import SearchConfig
from gptailor_merge.objectives.scores import Score
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import PARTS, Edit, Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.cuts import with_edit
from gptailor_merge.repair.repaired_recipe import repair_recipe as repair
from gptailor_merge.runs.session import Plans, Session, prepare, start
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.search.outcomes import loss

DEMO = Path(__file__).parent.parent / "recipes" / "demo"
CPU = torch.device("cpu")
LENGTH = 3
Rows = dict[str, dict[str, float]]


def held_out(session: Session, found: Plan) -> dict[str, float]:
    assert session.held_out is not None
    (by_set,) = session.held_out.score([found])[0].scores.values()
    return {n: s.mean for n, s in by_set.items()} | {"mean": Score.total(list(by_set.values())).mean}


def searched(session: Session) -> Callable[[list[Plan]], list[float]]:
    evaluator: Evaluator = session.evaluator
    return lambda plans: [loss(o.scores, session.settings.weights) for o in evaluator.score(plans)]


def best_block(plans: Plans, score: Callable[[list[Plan]], list[float]]) -> Recipe:
    space = plans.space
    starts = range(1, space.depth - LENGTH)
    blocks = [space.select(0, set(range(first, first + LENGTH))) for first in starts]
    losses = score(blocks)
    return space.recipe(blocks[losses.index(min(losses))])


def repairs(recipe: Recipe, tokens: list[int], length: int) -> Iterator[tuple[str, Recipe, float]]:
    """(what was done, the repaired recipe, seconds)."""
    data = {file.stem: str(file) for file in sorted((DEMO / "calibration").glob("*.jsonl"))}
    for everywhere in (False, True):
        for count in tokens:
            begun = time.monotonic()
            made = repair(
                recipe,
                data,
                Path(tempfile.mkdtemp()),
                everywhere=everywhere,
                tokens=count,
                sequence_length=length,
                device=CPU,
            )
            where = "everywhere" if everywhere else "at the cuts"
            yield f"repaired {where}, {count:,} tokens", made.recipe, time.monotonic() - begun


def greedy_layers(plans: Plans, score: Callable[[list[Plan]], list[float]]) -> tuple[Plan, int]:
    """The base without three layers, chosen one after the other, and its parameters."""
    removed: set[int] = set()
    for _ in range(LENGTH):
        open_ = [layer for layer in range(plans.space.depth) if layer not in removed]
        losses = score([plans.space.select(0, {*removed, layer}) for layer in open_])
        removed.add(open_[losses.index(min(losses))])
    found = plans.space.select(0, removed)
    return found, plans.family.parameters(found.kept)


def greedy_parts(
    plans: Plans, score: Callable[[list[Plan]], list[float]], size: int
) -> tuple[Plan, int, int]:
    """The base without parts, chosen one after the other; how many; parameters of what is left."""
    family = plans.family
    whole = plans.space.select(0, {0})
    slot = whole.slots[0]
    slots = tuple(replace(slot, layers=((family.base.model, i),)) for i in range(family.depth))
    found, left = replace(whole, slots=slots), family.parameters(range(family.depth))
    cost = score([found])[0]
    for count in range(1, 2 * family.depth + 1):
        open_ = [
            (layer, part)
            for layer in range(family.depth)
            for part in PARTS
            if Edit(part) not in found.slots[layer].edits
        ]
        tried = [with_edit(found, layer, Edit(part)) for layer, part in open_]
        losses = score(tried)
        sizes = [part_size(plans, layer, part) for layer, part in open_]
        rates = [(of - cost) / n for of, n in zip(losses, sizes, strict=True)]
        best = rates.index(min(rates))
        found, cost, left = tried[best], losses[best], left - sizes[best]
        if left <= size:
            return found, count, left
    raise SystemExit("nothing is left")


def part_size(plans: Plans, layer: int, part: str) -> int:
    """Parameters of an attention or an MLP."""
    base = plans.family.base
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
    run: Annotated[Path, typer.Option(help="A run of the demo search.")],
    tokens: Annotated[list[int] | None, typer.Option(help="That maps are fitted to.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
) -> None:
    quiet_libraries()
    config = SearchConfig.load(DEMO / "search.yml")
    plans = prepare(config)
    session = start(plans, CPU)
    score = searched(session)
    console = Console(width=110)
    length = 256
    found: dict[str, Any] = {}
    for name, recipe in {"block": best_block(plans, score), "found": Recipe.load(run / "best.yml")}.items():
        rows: Rows = {"as it is": held_out(session, plan(recipe))}
        seconds = {}
        for label, repaired, took in repairs(recipe, tokens or [4096, 16384, 65536], length):
            rows[label], seconds[label] = held_out(session, plan(repaired)), took
        titles = {"block": "The base without its best contiguous block", "found": "Found by gptailor-evolve"}
        console.print(draw(rows, titles[name]))
        console.print("seconds", {label: round(took) for label, took in seconds.items()})
        found[name] = {"losses": rows, "seconds": seconds}
    layers, size = greedy_layers(plans, score)
    parts, count, left = greedy_parts(plans, score, size)
    rows = {
        f"without {LENGTH} layers": held_out(session, layers),
        f"without {count} parts": held_out(session, parts),
    }
    console.print(draw(rows, "The base, chosen greedily"))
    console.print(
        f"parameters that are not zero: {size:,} and {left:,}; parameters that are stored: {size:,}"
    )
    said = [(i, edit.part) for i, slot in enumerate(parts.slots) for edit in slot.edits]
    console.print("layers", layers.kept, "parts left out", said)
    found["greedy"] = {"losses": rows, "parts": said, "layers": layers.kept, "not_zero": [size, left]}
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
