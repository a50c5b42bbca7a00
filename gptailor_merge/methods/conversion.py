"""Checkpoints as mergekit converts them: tensors that transformers renames or joins, and LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from mergekit.architecture.conversion import can_convert_checkpoint_keys, convert_checkpoint_tensors
from mergekit.common import ModelPath, ModelReference


def can_convert(model_type: str, names: Iterable[str], wanted: str) -> bool:
    """Whether transformers' conversions make a model's tensor of a checkpoint's."""
    return bool(can_convert_checkpoint_keys(model_type, set(names), wanted))


def convert(
    model_type: str, tensors: Mapping[str, Callable[[], torch.Tensor]], wanted: str
) -> torch.Tensor | None:
    """A model's tensor made of a checkpoint's, exactly as mergekit's loader makes it."""
    return convert_checkpoint_tensors(model_type, tensors, wanted)  # type: ignore[no-any-return]


def merge_adapter(model: Path, adapter: Path, out: Path) -> Path:
    """Merge a LoRA adapter into a model as mergekit does; returns the new directory below `out`."""
    reference = ModelReference(model=ModelPath(path=str(model)), lora=ModelPath(path=str(adapter)))
    return Path(reference.merged(cache_dir=str(out)).model.path)
