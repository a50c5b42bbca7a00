"""Compares the three models of a recipe: composed in memory, written by the host, and loaded back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.auto_classes import auto_class
from gptailor_merge.models.member import read_member
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.recipe import Recipe

IDS = torch.tensor([[3, 14, 15, 9, 2, 6, 5], [2, 7, 18, 28, 1, 8, 2]])
"""Token ids [sequences, length] that every tiny model knows."""


def compose(recipe: Recipe) -> PreTrainedModel:
    """Composes a recipe's model in memory, with a bank of its own."""
    plan, family = check_with_family(recipe)
    return Composer(Bank(family, Precision.of(recipe.dtype, recipe.out_dtype))).compose(plan)


def assert_three_equal(
    recipe: Recipe, out: Path, write: Callable[[Recipe, Path], Any] = materialize
) -> PreTrainedModel:
    """Asserts that the three models have the same bits and the same logits; returns the composed one.

    Args:
        out: the directory that `write` writes the model to.
    """
    write(recipe, out)
    written = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
    composed = compose(recipe)
    auto = auto_class(AutoConfig.from_pretrained(out))
    loaded, report = auto.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    live, back = composed.state_dict(), loaded.state_dict()
    of_base = read_member("base", recipe.base_model).written
    names = {name: of_base.of(name) for name in back}
    assert live.keys() == back.keys()
    assert set(names.values()) >= written.keys()
    for name, tensor in back.items():
        assert live[name].dtype == tensor.dtype, name
        assert torch.equal(live[name], tensor), name
        if names[name] in written:
            assert torch.equal(live[name], written[names[name]]), name
    with torch.inference_mode():
        assert torch.equal(composed(IDS).logits, loaded(IDS).logits)
    return composed
