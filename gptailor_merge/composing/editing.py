"""Edits single tensors after they were selected or merged.

Composing in memory and mergekit's `tailor` method call the same `edited`. The tensors are those of the
linear map that a part of a layer, its attention or its MLP, ends with (output_projections.py), the gains of
norms (norms.py), and the linear maps that an adapter changes (adapting.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from gptailor_merge.bounded_files import read_bounded
from gptailor_merge.composing.adapting import adapted
from gptailor_merge.digests import digest_of_bytes
from gptailor_merge.errors import RecipeError
from gptailor_merge.files import writing
from gptailor_merge.recipe.plan import LORA, NORMS, Edit

_MAP = "map"
"""The name of the only tensor in the file of a repair map."""

GAINS_FILE = "gains.safetensors"
"""The name that files of fitted gains get."""


MOST_BYTES = 2 * 1024**3
"""Bytes of the largest file of an edit; a map of 23,000 dimensions has as many."""


@dataclass(frozen=True)
class Placed:
    """An edit with the names, inside the layer, of the tensors that it changes.

    Attributes:
        prefix: what stands before these names in a file of gains, or in an adapter.
    """

    edit: Edit
    names: tuple[str, ...]
    prefix: str = ""


def to_json(placed: Sequence[Placed]) -> str:
    """Returns a text that `from_json` reads."""
    edits = ((p.edit.part, p.edit.digest, p.edit.file, p.edit.position) for p in placed)
    return json.dumps([[edit, p.names, p.prefix] for edit, p in zip(edits, placed, strict=True)])


def from_json(text: str) -> tuple[Placed, ...]:
    """Returns the edits of a lowered slot; an empty text has none."""
    entries = json.loads(text) if text else ()
    return tuple(Placed(Edit(*edit), tuple(names), prefix) for edit, names, prefix in entries)


def edited(placed: Collection[Placed], tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Returns a tensor after the edits that change it; without any, the tensor itself.

    An adapter, which is the last edit, leaves the rounding to the caller: its sum is of float32 or wider.

    Args:
        name: the tensor's name inside the layer, or its name outside the layers.
    """
    for placed_edit in placed:
        if name in placed_edit.names:
            edit = placed_edit.edit
            if edit.digest is None:
                tensor = torch.zeros_like(tensor)
            elif edit.part == LORA:
                tensor = adapted(edit.file, edit.digest, placed_edit.prefix + name, tensor)
            elif edit.part == NORMS:
                gain = load_gains(edit.file, edit.digest)[placed_edit.prefix + name]
                # A copy, since safetensors refuses to write one storage under two names.
                tensor = gain.to(tensor.device, tensor.dtype, copy=True)
            else:
                tensor = _mapped(edit, tensor)
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
    content = _content(file, digest)
    try:
        return load(content)[_MAP].double()
    except (SafetensorError, KeyError):
        raise RecipeError(f"{file} holds no map; expected what gptailor repair writes") from None


def save_map(matrix: torch.Tensor, directory: Path, name: str) -> tuple[Path, str]:
    """Writes a repair map [width, width] in float32; returns its file and digest.

    Raises:
        ConfigError, UnwritableError: the place cannot be written.
    """
    content = save({_MAP: matrix.float().cpu().contiguous()})
    file = directory / name
    with writing(file):
        file.write_bytes(content)
    return file, digest_of_bytes(content)


@lru_cache(maxsize=8)
def load_gains(file: str, digest: str) -> Mapping[str, torch.Tensor]:
    """Loads a file of gains: name -> float32 [width].

    The name is `layers.7.input_layernorm.weight` for a norm of the slots whose first source is layer 7, and
    the model's own for a norm outside the layers.

    Raises:
        RecipeError: the file is absent, holds no gains, or has another digest.
    """
    content = _content(file, digest)
    try:
        gains = load(content)
    except SafetensorError:
        gains = {}
    if not gains:
        raise RecipeError(f"{file} holds no gains of norms; expected a safetensors file of such")
    for name, gain in gains.items():
        if gain.dtype != torch.float32 or gain.dim() != 1:
            shape = f"{str(gain.dtype).removeprefix('torch.')} {list(gain.shape)}"
            raise RecipeError(f"{name} in {file} is {shape}; expected float32 and one dimension")
        if not gain.isfinite().all():
            raise RecipeError(f"{name} in {file} has values that are not finite")
    return gains


def save_gains(gains: Mapping[str, torch.Tensor], directory: Path, name: str) -> tuple[Path, str]:
    """Writes gains, named as `load_gains` says, in float32; returns their file and digest."""
    # Copies, since gains may be parts of one tensor, which safetensors refuses to write.
    copies = {key: gain.detach().to("cpu", torch.float32, copy=True) for key, gain in sorted(gains.items())}
    content = save({key: gain.contiguous() for key, gain in copies.items()})
    file = directory / name
    with writing(file):
        file.write_bytes(content)
    return file, digest_of_bytes(content)


def _content(file: str, digest: str) -> bytes:
    """Reads a file that a recipe names with its digest."""
    try:
        content = read_bounded(file, MOST_BYTES)
    except FileNotFoundError:
        raise RecipeError(f"no such file, found {file!r}") from None
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror or error}") from None
    if (actual := digest_of_bytes(content)) != digest:
        raise RecipeError(f"{file} has the digest {actual}, and the recipe was made with {digest}")
    return content
