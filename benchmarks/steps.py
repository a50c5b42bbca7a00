"""One step of each operation of the search space, tried at every slot of a recipe that was found.

    python benchmarks/steps.py --runs FILE [--json FILE] [--tiny]

FILE is what `operations.py --json FILE` wrote. From the default's recipe of each seed every single step
of an operation is taken in turn and scored on the calibration set; the best one is scored on the held-out
set. So the operations are compared without a search that may or may not find what they have to give. With
--tiny no FILE is needed: the steps go from the base without a block of layers.
Figures are changes of the loss: of KL on the calibration set, and of nats per token on the held-out set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from common import SEARCH, Config, JsonFile, Tiny, held_out_losses, middle_block, read_config
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge import (
    Recipe,
    Session,
    Space,
    open_session,
    plan,
    quiet_libraries,
    space_of,
)
from gptailor_merge.api.engine import Array, Operations, Point, at_offset, middle, plan_of, point_of

ALL = {"outer": "merge", "neighbours": 1, "parts": True}
TINY_STEPS = 3
Changed = dict[str, Array]


def copy_of(point: Point) -> Changed:
    return {name: values.copy() for name, values in point.items()}


def swaps(space: Space, point: Point) -> Iterator[Changed]:
    """Yields points that remove another layer."""
    kept = space.kept_layers(point)
    for out in set(kept) & set(space.removable):
        for back in set(range(space.depth)) - set(kept):
            child = copy_of(point)
            keys = child["removal"]
            keys[out], keys[back] = keys[back], keys[out]
            yield child


def selections(space: Space, point: Point) -> Iterator[Changed]:
    """Yields points that select another member in a slot."""
    for layer in space.kept_layers(point):
        for member in range(len(space.models)):
            child = copy_of(point)
            child["kind"][layer] = middle(member, space.kinds)
            yield child


def components(space: Space, point: Point) -> Iterator[Changed]:
    """Yields points with embeddings and head of a member, or half-way to a member's."""
    assert space.outer is not None
    count = len(space.models)
    for kind in range(space.outer.kinds):
        for member in range(1, count) if kind >= count else [0]:
            child = copy_of(point)
            child["outer_kind"][:] = middle(kind, space.outer.kinds)
            child["outer_share"][:] = 0.25
            child["outer_share"][:, [0, member]] = 0.75
            yield child


def neighbours(space: Space, point: Point) -> Iterator[Changed]:
    """Yields points that take a neighbour of one of the layers that a slot takes."""
    for layer in space.kept_layers(point):
        for member in space.members(point, layer):
            for other in space.layers_for(layer):
                child = copy_of(point)
                child["shift"][layer, member] = at_offset(other - layer, space.neighbours)
                yield child


def parts(space: Space, point: Point) -> Iterator[Changed]:
    """Yields points with attention or MLP of another member in a slot, or of two where there was a merge."""
    count = len(space.models)
    assert space.parts_kind is not None
    for layer in space.kept_layers(point):
        members = space.members(point, layer)
        for attention in range(count):
            for mlp in range(count):
                if attention != mlp and {attention, mlp} & set(members):
                    child = copy_of(point)
                    child["kind"][layer] = middle(space.parts_kind, space.kinds)
                    child["part"][layer] = [middle(attention, count), middle(mlp, count)]
                    yield child


STEPS: dict[str, Callable[[Space, Point], Iterator[Changed]]] = {
    "another layer removed": swaps,
    "another member selected": selections,
    "outer": components,
    "neighbours: 1": neighbours,
    "parts": parts,
}


def gains(
    space: Space, session: Session, recipe: Recipe, most: int | None = None
) -> dict[str, dict[str, float]]:
    """Tells for each operation how the steps from a recipe change its losses.

    Args:
        most: number of steps of each operation that are tried; None tries all.
    """
    here = plan(recipe)
    point = point_of(space, recipe)
    (loss_here,) = session.losses([here])
    held_out_here = held_out_losses(session, here)["mean"]
    results = {}
    for name, steps in STEPS.items():
        plans = {
            step.digest: step for step in (plan_of(space.decode(child)) for child in steps(space, point))
        }
        plans.pop(here.digest, None)
        tried = list(islice(plans.values(), most))
        changes = np.array(session.losses(tried)) - loss_here
        best = tried[int(changes.argmin())]
        results[name] = {
            "steps": len(tried),
            "better": int((changes < 0).sum()),
            "searched": float(changes.min()),
            "held_out": held_out_losses(session, best)["mean"] - held_out_here,
        }
    return results


def table_of(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Draws means over the seeds, and the held-out change of the best step seed by seed."""
    seeds = sorted(results, key=int)
    columns = ("one step", "steps", "better", "best step, searched", "held out, mean")
    table = Table(*columns, *(f"seed {seed}" for seed in seeds), box=box.MARKDOWN)
    for name in STEPS:
        values = {
            key: [results[seed][name][key] for seed in seeds]
            for key in ("steps", "better", "searched", "held_out")
        }
        mean = {key: float(np.mean(by_seed)) for key, by_seed in values.items()}
        cells = [f"{mean['steps']:.0f}", f"{mean['better']:.1f}", f"{mean['searched']:+.4f}"]
        table.add_row(name, *cells, f"{mean['held_out']:+.4f}", *(f"{x:+.4f}" for x in values["held_out"]))
    return table


def main(
    runs: Annotated[Path | None, typer.Option(help="The file that operations.py --json wrote.")] = None,
    json_file: JsonFile = None,
    config: Config = SEARCH,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    search_config = read_config(config, tiny=tiny)
    session = open_session(search_config, device="cpu")
    section = Operations(**{**dict(search_config.operations), **ALL})
    space = space_of(search_config.model_copy(update={"operations": section}))
    if runs is not None:
        default = json.loads(runs.read_text())["default"]
        recipes = {seed: Recipe.from_mapping(yaml.safe_load(run["recipe"])) for seed, run in default.items()}
    elif tiny:
        recipes = {"0": session.recipe(session.select(0, middle_block(session.space)))}
    else:
        raise typer.BadParameter("--runs FILE is missing; operations.py --json FILE writes it")
    results: dict[str, Any] = {}
    for seed, recipe in recipes.items():
        results[seed] = gains(space, session, recipe, TINY_STEPS if tiny else None)
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1))
    Console(width=160).print(table_of(results))


if __name__ == "__main__":
    typer.run(main)
