"""Everything in recipes/ is sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor_merge.recipe.check import check
from gptailor_merge.recipe.recipe import Recipe

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_papers_recipes(number: int) -> None:
    """Offline: lints; 30 of 40 layers, 25 % of the layers gone, sources at the slot's own layer."""
    file = RECIPES / f"llama-2-13b-gptailor-{number}.yml"
    recipe = Recipe.load(file)
    plan = check(recipe, file=file)
    assert len(plan.slots) == 30
    assert all(len({index for _, index in slot.layers}) == 1 for slot in plan.slots)
    removed = {
        layer
        for part in recipe.slices
        if part.parameter("op") == "remove"
        for layer in range(*part.sources[0].layer_range)
    }
    assert removed | {slot.layers[0][1] for slot in plan.slots} == set(range(40))
    text = file.read_text()
    assert "Known fault of the published code" in text
