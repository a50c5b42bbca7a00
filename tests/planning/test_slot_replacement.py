"""Slots written down again are the same slots."""

from __future__ import annotations

from typing import Any

import pytest

from gptailor_merge.planning.resolve import plan
from gptailor_merge.planning.slot_replacement import rewritten
from gptailor_merge.planning.writing import slices_of
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of

NAMES = {"base": "org/base", "math": "org/math", "code": "org/code"}


def sources(*named: str, **own: Any) -> list[dict[str, Any]]:
    return [{"model": NAMES[n], "layer_range": [2, 4], **({"parameters": own} if own else {})} for n in named]


MERGES: dict[str, dict[str, Any]] = {
    "gradients": {
        "sources": sources("math", "code", weight=[0.1, 0.9]),
        "parameters": {"op": "merge", "method": "linear"},
    },
    "filters": {
        "sources": sources("math", "code", weight=0.5),
        "parameters": {
            "op": "merge",
            "method": "ties",
            "density": [{"filter": "mlp", "value": [0.2, 0.6]}, {"value": 0.5}],
            "normalize": False,
        },
    },
    "another base": {
        "sources": sources("math", "code"),
        "base_model": NAMES["code"],
        "parameters": {"op": "merge", "method": "slerp", "t": 0.3},
    },
    "a marked base": {
        "sources": [
            {"model": NAMES["base"], "layer_range": [3, 5], "parameters": {"base": True}},
            {"model": NAMES["base"], "layer_range": [2, 4], "parameters": {"weight": 0.5}},
        ],
        "parameters": {"op": "merge", "method": "task_arithmetic"},
    },
    "edits": {
        "sources": sources("math"),
        "parameters": {"op": "select", "without": "attention", "scale": [0.5, 1.0]},
    },
    "a repair": {
        "sources": [{"model": NAMES["math"], "layer_range": [2, 3]}],
        "parameters": {"op": "select", "repair": "m.safetensors", "repair_digest": "0" * 16},
    },
}


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("top", [{}, {"weight": 0.25}], ids=["", "defaults"])
def test_the_plan_stays_the_same(name: str, top: dict[str, Any]) -> None:
    used = name in ("gradients", "filters", "a marked base")
    recipe = Recipe.from_mapping(recipe_of(NAMES, MERGES[name], **({"parameters": top} if used else {})))
    before = plan(recipe)
    slices = tuple(slices_of(before.slots, before.base_model))
    after = plan(recipe.model_copy(update={"slices": slices}))
    assert after.slots == before.slots
    assert after.digest == before.digest
    assert [e.file for s in after.slots for e in s.edits] == [e.file for s in before.slots for e in s.edits]
    assert rewritten(recipe, before.slots) == recipe


def test_neighbours_that_are_made_alike_are_one_slice() -> None:
    whole = {"sources": [{"model": NAMES["math"], "layer_range": [1, 4]}], "parameters": {"op": "select"}}
    document: dict[str, Any] = recipe_of(NAMES, whole)
    del document["slices"][1]
    made = list(slices_of(plan(Recipe.from_mapping(document)).slots, NAMES["base"]))
    assert [part.sources[0].layer_range for part in made] == [(0, 4), (4, 5)]
