"""The contract of a merge method that recipes name.

from gptailor_merge.testing.methods import MergeMethodContract

class TestMyMethod(MergeMethodContract):
    method = "my_method"
    source_parameters = {"weight": 0.4}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptailor_merge.methods.arithmetic import apply
from gptailor_merge.methods.specs import method_spec
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.recipe.plan import Operation
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal, compose
from gptailor_merge.testing.tiny_models import write_family


class MergeMethodContract:
    """Tests that every merge method passes; a subclass names the method and its parameters.

    Attributes:
        method: the method's registered name.
        members: the members that a slice merges, of "base", "math" and "code".
        parameters: the parameters of the slice.
        source_parameters: the parameters of every source that is not the base.
        base_parameters: the parameters of the base, if it is among the members.
    """

    method: str
    members: tuple[str, ...] = ("base", "math", "code")
    parameters: Mapping[str, Any] = {}
    source_parameters: Mapping[str, Any] = {}
    base_parameters: Mapping[str, Any] = {}

    @pytest.fixture
    def tiny_family(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
        """Returns name -> directory of base, math and code, which are written once per session."""
        return write_family(tmp_path_factory.getbasetemp() / "tiny-family")

    def slice_of(self, family: Mapping[str, str], first: int, past: int) -> dict[str, Any]:
        """Returns a slice that merges the layers from `first` up to, but not including, `past`."""
        sources = []
        for name in self.members:
            parameters = dict(self.base_parameters if name == "base" else self.source_parameters)
            source = {"model": family[name], "layer_range": [first, past]}
            sources.append({**source, "parameters": parameters} if parameters else source)
        return {"sources": sources, "parameters": {"op": "merge", "method": self.method, **self.parameters}}

    def recipe_of(self, family: Mapping[str, str], *slices: Mapping[str, Any]) -> Recipe:
        """Returns a recipe of these slices, merged in float32 and written in bfloat16."""
        document = {"merge_method": "tailor", "base_model": family["base"], "slices": list(slices)}
        return Recipe.from_mapping({**document, "dtype": "float32", "out_dtype": "bfloat16"})

    def test_the_method_is_registered(self) -> None:
        spec = method_spec(self.method)
        assert spec is not None
        assert spec.name == self.method

    def test_a_recipe_has_no_problems_and_survives_yaml(self, tiny_family: dict[str, str]) -> None:
        recipe = self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, 3))
        assert problems(recipe) == []
        read_back = Recipe.from_mapping(yaml.safe_load(recipe.to_yaml()))
        assert read_back == recipe
        assert plan(read_back).digest == plan(recipe).digest

    def test_operations_survive_json(self, tiny_family: dict[str, str]) -> None:
        for slot in plan(self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, 3))).slots:
            text = slot.operation.to_json()
            assert Operation.from_json(text).to_json() == text

    def test_composed_written_and_loaded_models_are_equal(
        self, tiny_family: dict[str, str], tmp_path: Path
    ) -> None:
        assert_three_equal(self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, 3)), tmp_path / "out")

    def test_the_same_recipe_gives_the_same_weights_in_any_slot(self, tiny_family: dict[str, str]) -> None:
        """Random numbers depend on the operation and the tensor, not on the slot or on earlier draws."""
        merge = self.slice_of(tiny_family, 2, 3)
        select = {
            "sources": [{"model": tiny_family["base"], "layer_range": [0, 1]}],
            "parameters": {"op": "select"},
        }
        first = compose(self.recipe_of(tiny_family, merge)).model.layers[0].state_dict()
        torch.rand(7)
        second = compose(self.recipe_of(tiny_family, select, merge)).model.layers[1].state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_merging_changes_neither_its_inputs_nor_the_random_state(
        self, tiny_family: dict[str, str]
    ) -> None:
        (slot,) = plan(self.recipe_of(tiny_family, self.slice_of(tiny_family, 1, 2))).slots
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(6, 4, generator=generator) for _ in slot.layers]
        copies = [tensor.clone() for tensor in tensors]
        state = torch.get_rng_state()
        result = apply(slot.operation, tensors, "model.layers.1.mlp.up_proj.weight")
        assert result.shape == (6, 4)
        assert all(map(torch.equal, tensors, copies))
        assert torch.equal(torch.get_rng_state(), state)
