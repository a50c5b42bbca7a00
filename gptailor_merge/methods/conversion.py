"""Converts tensors of checkpoints as mergekit's loader does, for those that transformers renames or joins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from mergekit.architecture.conversion import can_convert_checkpoint_keys, convert_checkpoint_tensors


def can_convert(model_type: str, names: Iterable[str], wanted: str) -> bool:
    """Tells whether transformers' conversions make a model's tensor of a checkpoint's tensors."""
    return bool(can_convert_checkpoint_keys(model_type, set(names), wanted))


def convert(
    model_type: str, tensors: Mapping[str, Callable[[], torch.Tensor]], wanted: str
) -> torch.Tensor | None:
    """Returns a model's tensor, made of a checkpoint's tensors; None if no conversion makes it.

    Args:
        tensors: the checkpoint's name -> function that reads the tensor.
        wanted: the model's name.
    """
    return convert_checkpoint_tensors(model_type, tensors, wanted)  # type: ignore[no-any-return]
