"""The contract of an operation that a slice's `op` names, see planning/operations.py.

    from gptailor_merge.testing.operations import LayerOperationContract

    class TestBlend(LayerOperationContract):
        op = "blend"

        def slice_of(self, family, first, past):
            sources = [{"model": family[name], "layer_range": [first, past]} for name in ("base", "math")]
            return {"sources": sources, "parameters": {"op": "blend", "share": 0.3}}

The operation must be registered: as an entry point of the group `gptailor_merge.operations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptailor_merge.planning.operations import OPERATIONS
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal
from gptailor_merge.testing.tiny_models import write_family


class LayerOperationContract:
    """Tests that every operation passes; a subclass gives its name and a slice.

    Attributes:
        op: the operation's name.
        fills_slots: False for an operation that removes layers.
    """

    op: str
    fills_slots = True

    @pytest.fixture
    def tiny_family(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
        """Returns name -> directory of base, math and code, which are written once per session."""
        return write_family(tmp_path_factory.getbasetemp() / "tiny-family")

    def slice_of(self, family: Mapping[str, str], first: int, past: int) -> dict[str, Any]:
        """Returns a slice without problems that uses the layers from `first` to `past` of the members.

        Args:
            family: name -> directory of "base", "math" and "code".
        """
        raise NotImplementedError("give a method `slice_of` that returns a slice of the operation")

    def recipe_of(self, family: Mapping[str, str], part: Mapping[str, Any]) -> Recipe:
        """Returns a recipe that selects the first layer of the base and then has the slice."""
        select = {
            "sources": [{"model": family["base"], "layer_range": [0, 1]}],
            "parameters": {"op": "select"},
        }
        document = {"merge_method": "tailor", "base_model": family["base"], "slices": [select, part]}
        return Recipe.from_mapping({**document, "dtype": "float32", "out_dtype": "bfloat16"})

    def test_the_operation_is_registered(self) -> None:
        assert self.op in OPERATIONS
        assert isinstance(OPERATIONS[self.op]().takes_base_model, bool)

    def test_a_sound_slice_has_no_problems(self, tiny_family: dict[str, str]) -> None:
        assert problems(self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, 3))) == []

    def test_every_layer_fills_one_slot(self, tiny_family: dict[str, str]) -> None:
        for past in (2, 4):
            slots = plan(self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, past))).slots
            assert len(slots) == (past if self.fills_slots else 1)

    def test_plans_are_equal_values_and_survive_yaml(self, tiny_family: dict[str, str]) -> None:
        recipe = self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, 3))
        read_back = Recipe.from_mapping(yaml.safe_load(recipe.to_yaml()))
        assert plan(read_back) == plan(recipe)
        assert hash(plan(read_back)) == hash(plan(recipe))
        assert plan(read_back).digest == plan(recipe).digest

    def test_an_unknown_parameter_is_named_with_its_place(self, tiny_family: dict[str, str]) -> None:
        part = self.slice_of(tiny_family, 1, 3)
        part = {**part, "parameters": {**part["parameters"], "no_such_parameter": 1}}
        mistakes = problems(self.recipe_of(tiny_family, part))
        assert [mistake.where for mistake in mistakes] == ["slices[1].parameters.no_such_parameter"]

    def test_composed_written_and_loaded_models_are_equal(
        self, tiny_family: dict[str, str], tmp_path: Path
    ) -> None:
        assert_three_equal(self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, 3)), tmp_path / "out")
