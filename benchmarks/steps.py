"""How far one step goes: each operation of the search space, tried at every slot of a recipe that was found.

    python benchmarks/steps.py --runs FILE [--json FILE]

FILE is what `operations.py --json FILE` wrote. From the default's recipe of each seed every single step
of an operation is taken in turn and scored on the calibration set; the best one is scored on the held-out
set. So the operations are compared without a search that may or may not find what they have to give.
Figures are changes of the loss: of KL on the calibration set, and of nats per token on the held-out set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.config import Operations, SearchConfig
from gptailor_merge.objectives.scores import Score
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.session import Session, start
from gptailor_merge.search.outcomes import loss
from gptailor_merge.space.points import Array, Point, at_offset, middle
from gptailor_merge.space.space import Space

CONFIG = Path(__file__).parent.parent / "recipes" / "demo" / "search.yml"
ALL = {"outer": "merge", "neighbours": 1, "parts": True}
Changed = dict[str, Array]


def copy_of(point: Point) -> Changed:
    return {name: values.copy() for name, values in point.items()}


def swaps(space: Space, point: Point) -> Iterator[Changed]:
    """Another layer removed."""
    kept = space.kept_layers(point)
    for out in set(kept) & set(space.removable):
        for back in set(range(space.depth)) - set(kept):
            child = copy_of(point)
            keys = child["removal"]
            keys[out], keys[back] = keys[back], keys[out]
            yield child


def selections(space: Space, point: Point) -> Iterator[Changed]:
    """Another member selected in a slot."""
    for layer in space.kept_layers(point):
        for member in range(len(space.models)):
            child = copy_of(point)
            child["kind"][layer] = middle(member, space.kinds)
            yield child


def components(space: Space, point: Point) -> Iterator[Changed]:
    """Embeddings and head of a member, or half-way to a member's."""
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
    """A neighbour of one of the layers that a slot takes."""
    for layer in space.kept_layers(point):
        for member in space.members(point, layer):
            for other in space.layers_for(layer):
                child = copy_of(point)
                child["shift"][layer, member] = at_offset(other - layer, space.neighbours)
                yield child


def parts(space: Space, point: Point) -> Iterator[Changed]:
    """Attention or MLP of another member in a slot, or of two where there was a merge."""
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


def held_out(session: Session, made: Plan) -> float:
    assert session.held_out is not None
    (by_set,) = session.held_out.score([made])[0].scores.values()
    return Score.total(list(by_set.values())).mean


def gains(space: Space, session: Session, recipe: Recipe) -> dict[str, dict[str, float]]:
    """For each operation what its steps from a recipe change."""
    own = plan(recipe)
    point = space.encode(own)
    (before,) = session.evaluator.score([own])
    here = loss(before.scores, session.settings.weights)
    found = {}
    for name, steps in STEPS.items():
        made = {p.digest: p for p in (space.decode(child) for child in steps(space, point))}
        made.pop(own.digest, None)
        plans = list(made.values())
        outcomes = session.evaluator.score(plans)
        changes = np.array([loss(o.scores, session.settings.weights) for o in outcomes]) - here
        best = plans[int(changes.argmin())]
        found[name] = {
            "steps": len(plans),
            "better": int((changes < 0).sum()),
            "searched": float(changes.min()),
            "held_out": held_out(session, best) - held_out(session, own),
        }
    return found


def table_of(found: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Means over the seeds; the held-out change of the best step seed by seed."""
    seeds = sorted(found, key=int)
    columns = ("one step", "steps", "better", "best step, searched", "held out, mean")
    table = Table(*columns, *(f"seed {seed}" for seed in seeds), box=box.MARKDOWN)
    for name in STEPS:
        of = {
            key: [found[s][name][key] for s in seeds] for key in ("steps", "better", "searched", "held_out")
        }
        mean = {key: float(np.mean(values)) for key, values in of.items()}
        cells = [f"{mean['steps']:.0f}", f"{mean['better']:.1f}", f"{mean['searched']:+.4f}"]
        table.add_row(name, *cells, f"{mean['held_out']:+.4f}", *(f"{x:+.4f}" for x in of["held_out"]))
    return table


def main(
    runs: Annotated[Path, typer.Option(help="What operations.py --json wrote.")],
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    config: Path = CONFIG,
) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    read = SearchConfig.load(config)
    session = start(prepare(read), torch.device("cpu"))
    section = Operations(**{**dict(read.operations), **ALL})
    space = prepare(read.model_copy(update={"operations": section})).space
    found: dict[str, Any] = {}
    for seed, run in json.loads(runs.read_text())["default"].items():
        recipe = Recipe.from_mapping(yaml.safe_load(run["recipe"]))
        found[seed] = gains(space, session, recipe)
        if json_file is not None:
            json_file.write_text(json.dumps(found, indent=1))
    Console(width=160).print(table_of(found))


if __name__ == "__main__":
    typer.run(main)
