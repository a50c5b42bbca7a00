"""A recipe as a map, and what recipes have in common."""

from __future__ import annotations

import pytest

from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.recipe_map import Place, Take, agreement, cell, outer, places
from tests.conftest import recipe_of
from tests.report.runs import FAMILY, recipe

NAMES = {model: name for name, model in FAMILY.items()}


def test_slots_and_removed_layers_stand_in_order() -> None:
    assert places(recipe(), NAMES) == (
        Place(0, 0, (Take("math", 0, 1.0),), "select"),
        Place(1, None),
        # task_arithmetic: the base has what the weights of the others leave.
        Place(2, 1, (Take("base", 2, pytest.approx(0.2), None), *_taken(2, 0.6, 0.2)), "task_arithmetic"),
        Place(3, 2, (Take("base", 3, 0.0, None), *_taken(3, 0.6, 0.4)), "task_arithmetic"),
        Place(4, 3, (Take("base", 4, 1.0),), "select"),
    )


def _taken(layer: int, math: float, code: float) -> tuple[Take, ...]:
    return Take("math", layer, math, math), Take("code", layer, code, code)


def test_slerp_parts_what_it_takes_by_t() -> None:
    merge = {
        "sources": [{"model": FAMILY[name], "layer_range": [2, 4]} for name in ("base", "math")],
        "parameters": {"op": "merge", "method": "slerp", "t": 0.3},
    }
    found = places(Recipe.from_mapping(recipe_of(FAMILY, merge)), NAMES)[2]
    assert [(take.member, take.share) for take in found.takes] == [("base", 0.7), ("math", 0.3)]


def test_a_cell_says_weights_and_layers_that_are_not_its_own() -> None:
    place = Place(2, 1)
    assert cell(place, []) == ""
    assert cell(place, [Take("a", 2, 1.0)]) == ""
    assert cell(place, [Take("a", 2, 0.05, 0.05)]) == ".05"
    assert cell(place, [Take("a", 3, 0.5, 0.5)]) == "↕3 .5"
    assert cell(place, [Take("a", 2, 1.0, 1.0)]) == "1"
    assert cell(place, [Take("a", 2, 0.3051, 0.3051)]) == ".31"
    assert cell(place, [Take("a", 2, 10.54, 10.54)]) == "11"


def test_a_base_that_the_others_outweigh_has_a_negative_number() -> None:
    """An empty cell would look as if the base were not there."""
    assert cell(Place(2, 1), [Take("base", 2, -0.0731)]) == "−.073"
    assert cell(Place(2, 1), [Take("base", 2, -0.0001)]) == "0"
    assert (Take("base", 2, -0.25).shade, Take("a", 2, 1.5, 1.5).shade) == (0.25, 1.0)


def test_embeddings_head_and_tokenizer_are_told_by_the_members_names() -> None:
    parameters = {
        "embeddings": {"method": "linear", "weights": {"base": 0.25, FAMILY["math"]: 0.75}},
        "tokenizer": FAMILY["code"],
        "gains": "g.safetensors",
        "gains_digest": "0" * 16,
    }
    assert outer(Recipe.from_mapping(recipe_of(FAMILY, parameters=parameters)), NAMES) == {
        "embeddings": "linear of base × 0.25, math × 0.75",
        "head": "base, with fitted norms",
        "tokenizer": "code",
    }


def test_shares_are_of_all_recipes() -> None:
    found = agreement([recipe(0.6), recipe(0.4), recipe(removed=0)], NAMES, 5)
    assert found.recipes == 3
    assert found.kept == pytest.approx((2 / 3, 0, 1, 1, 1))
    assert found.taken["math"] == pytest.approx((2 / 3, 0, 1, 1, 0))
    assert found.taken["base"] == pytest.approx((0, 0, 1, 1, 1))
