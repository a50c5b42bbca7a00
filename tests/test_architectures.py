"""The architectures that people merge: stock mergekit and composing make the same sound model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor_merge.recipe.recipe import Recipe
from tests.test_three_models import IDS, assert_three_equal
from tests.zoo import ZOO, write_family


def by_stock_mergekit(recipe: Recipe, out: Path) -> None:
    """What `mergekit-yaml` does with the recipe's file, through the pydantic plug-in."""
    configuration = MergeConfiguration.model_validate(recipe.to_mapping())
    run_merge(configuration, str(out), MergeOptions(write_model_card=False, quiet=True))


def pruning(family: dict[str, str]) -> Recipe:
    """Remove, select and merge; the removals shift every pattern of layers."""
    base, math, code = family["base"], family["math"], family["code"]

    def part(model: str, first: int, last: int, op: str) -> dict[str, Any]:
        return {"sources": [{"model": model, "layer_range": [first, last]}], "parameters": {"op": op}}

    merged = [
        {"model": model, "layer_range": [2, 4], "parameters": {"weight": 0.6}} for model in (math, code)
    ]
    slices = [
        part(math, 0, 1, "select"),
        part(base, 1, 2, "remove"),
        {"sources": merged, "parameters": {"op": "merge", "method": "task_arithmetic"}},
        part(base, 4, 5, "remove"),
        part(code, 5, 6, "select"),
        part(base, 6, 8, "select"),
    ]
    top = {"merge_method": "tailor", "base_model": base, "dtype": "float32", "out_dtype": "bfloat16"}
    return Recipe.from_mapping({**top, "slices": slices})


def assert_generates_alike(model: PreTrainedModel) -> None:
    """Greedy generation with the KV cache equals generation without, past the sliding window."""
    made = [
        model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=cached)
        for cached in (True, False)
    ]
    assert made[0].shape == (2, IDS.shape[1] + 6)
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ZOO)
def test_stock_mergekit_and_composing_agree(name: str, tmp_path: Path) -> None:
    # float32: without and with the cache, sums are taken in another order
    recipe = pruning(write_family(tmp_path, name)).model_copy(update={"out_dtype": "float32"})
    composed = assert_three_equal(recipe, tmp_path / "out", by_stock_mergekit)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert composed.config.num_hidden_layers == loaded.config.num_hidden_layers == 6
    for model in (composed, loaded.eval()):
        assert_generates_alike(model)
