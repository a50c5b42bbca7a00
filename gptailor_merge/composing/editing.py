"""Edits single tensors of a layer after it was selected or merged.

Composing in memory and mergekit's `tailor` method call the same `edited`. The tensors are those of the
linear map that a part of a layer, its attention or its MLP, ends with (output_projections.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from gptailor_merge.digests import digest_of_bytes
from gptailor_merge.errors import RecipeError
from gptailor_merge.recipe.plan import Edit

_MAP = "map"
"""The name of the only tensor in the file of a repair map."""


@dataclass(frozen=True)
class Placed:
    """An edit with the names, inside the layer, of the tensors that it changes."""

    edit: Edit
    names: tuple[str, ...]


def to_json(placed: Sequence[Placed]) -> str:
    """Returns a text that `from_json` reads."""
    return json.dumps([[p.edit.part, p.edit.digest, p.edit.file, p.names] for p in placed])


def from_json(text: str) -> tuple[Placed, ...]:
    """Returns the edits of a lowered slot; an empty text has none."""
    entries = json.loads(text) if text else ()
    return tuple(Placed(Edit(part, digest, file), tuple(names)) for part, digest, file, names in entries)


def edited(placed: Collection[Placed], tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Returns a tensor after the edits that change it; without any, the tensor itself.

    Args:
        name: the tensor's name inside the layer.
    """
    for placed_edit in placed:
        if name in placed_edit.names:
            edit = placed_edit.edit
            tensor = torch.zeros_like(tensor) if edit.digest is None else _mapped(edit, tensor)
    return tensor


def _mapped(edit: Edit, tensor: torch.Tensor) -> torch.Tensor:
    """Returns map @ tensor, computed in float64 on the CPU, so that all devices give the same bits."""
    assert edit.digest is not None
    product = load_map(edit.file, edit.digest) @ tensor.to("cpu", torch.float64)
    return product.to(tensor.device, tensor.dtype)


@lru_cache(maxsize=32)
def load_map(file: str, digest: str) -> torch.Tensor:
    """Loads a repair map, float64 [width, width].

    Raises:
        RecipeError: the file is absent, holds no repair map, or has another digest.
    """
    try:
        content = Path(file).read_bytes()
    except OSError:
        raise RecipeError(f"no such file, found {file!r}") from None
    if (actual := digest_of_bytes(content)) != digest:
        raise RecipeError(f"{file} has the digest {actual}, and the recipe was made with {digest}")
    try:
        return load(content)[_MAP].double()
    except (SafetensorError, KeyError):
        raise RecipeError(f"{file} holds no map; expected what gptailor repair writes") from None


def save_map(matrix: torch.Tensor, directory: Path, name: str) -> tuple[Path, str]:
    """Writes a repair map [width, width] in float32; returns its file and digest."""
    content = save({_MAP: matrix.float().cpu().contiguous()})
    file = directory / name
    file.write_bytes(content)
    return file, digest_of_bytes(content)
