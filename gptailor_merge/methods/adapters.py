"""Merges LoRA adapters into models as mergekit does."""

from __future__ import annotations

from pathlib import Path

from mergekit.common import ModelPath, ModelReference


def merge_adapter(model: Path, adapter: Path, out: Path) -> Path:
    """Merges a LoRA adapter into a model; returns the new directory below `out`."""
    reference = ModelReference(model=ModelPath(path=str(model)), lora=ModelPath(path=str(adapter)))
    return Path(reference.merged(cache_dir=str(out)).model.path)
