"""Our operations pass the contract that ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gptailor_merge.errors import RecipeError
from gptailor_merge.planning.operations import BUILT_IN, OPERATIONS
from gptailor_merge.testing.operations import LayerOperationContract


class TestRemove(LayerOperationContract):
    op = "remove"
    fills_slots = False

    def slice_of(self, family: Mapping[str, str], first: int, past: int) -> dict[str, Any]:
        source = {"model": family["base"], "layer_range": [first, past]}
        return {"sources": [source], "parameters": {"op": "remove"}}


class TestSelect(LayerOperationContract):
    op = "select"

    def slice_of(self, family: Mapping[str, str], first: int, past: int) -> dict[str, Any]:
        source = {"model": family["math"], "layer_range": [first, past]}
        return {"sources": [source], "parameters": {"op": "select"}}


class TestMerge(LayerOperationContract):
    op = "merge"

    def slice_of(self, family: Mapping[str, str], first: int, past: int) -> dict[str, Any]:
        sources = [{"model": family[name], "layer_range": [first, past]} for name in ("math", "code")]
        parameters = {"op": "merge", "method": "task_arithmetic", "weight": 0.6}
        return {"sources": sources, "parameters": parameters}


def test_the_built_in_operations_come_first_and_unknown_ones_are_errors() -> None:
    assert list(OPERATIONS)[:3] == list(BUILT_IN) == ["remove", "select", "merge"]
    with pytest.raises(RecipeError, match="unknown op, found 'slect'; did you mean 'select'"):
        OPERATIONS["slect"]
