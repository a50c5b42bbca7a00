"""Adds the LoRA adapter of a recipe to the linear maps of a composed model's layers.

The names in the adapter are those of the pruned model, whose layers count from 0. The sum is computed in
float64 and is one of float32 or wider, which is then rounded to the recipe's out_dtype.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from gptailor_merge.bounded_files import read_bounded
from gptailor_merge.digests import digest, digest_of_bytes
from gptailor_merge.errors import FamilyError, RecipeError
from gptailor_merge.methods.plain_lora import lora_change, plain_config
from gptailor_merge.models.chosen_weights import ADAPTER
from gptailor_merge.recipe.plan import Edit

CONFIG_FILE, WEIGHTS_FILE = ADAPTER


MOST_BYTES = 4 * 1024**3
"""Bytes of the largest adapter."""


_OF_MACHINE = ("base_model_name_or_path", "revision")
"""Settings of adapter_config.json that name the model it was trained on, by a path as often as not."""


_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter in memory.

    Attributes:
        config: as peft reads it; it is plain LoRA.
        factors: path of a linear map in the pruned model -> (lora_A [rank, in], lora_B [out, rank]).
    """

    config: peft.LoraConfig
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor, as the file calls them."""
        return {
            f"base_model.model.{path}.lora_{letter}.weight": tuple(factor.shape)
            for path, factors in self.factors.items()
            for letter, factor in zip("AB", factors, strict=True)
        }

    @property
    def modules(self) -> tuple[str, ...]:
        """The kinds of linear maps that it changes, by the last part of their paths, sorted."""
        return tuple(sorted({path.rpartition(".")[2] for path in self.factors}))

    @property
    def parameters(self) -> int:
        """The number of trained numbers."""
        return sum(factor.numel() for factors in self.factors.values() for factor in factors)

    @property
    def words(self) -> str:
        """The adapter in words, e.g. "a LoRA adapter of rank 8 on q_proj, v_proj (4,096 numbers)"."""
        modules = ", ".join(self.modules)
        return f"a LoRA adapter of rank {self.config.r} on {modules} ({self.parameters:,} numbers)"


def adapter_words(edit: Edit) -> str:
    """Returns the words for a recipe's adapter, fewer of them where it cannot be read."""
    assert edit.digest is not None
    try:
        return load_adapter(edit.file, edit.digest).words
    except RecipeError:
        return "a LoRA adapter"


def adapted(directory: str, digest_of_adapter: str, path: str, weight: torch.Tensor) -> torch.Tensor:
    """Returns the weight of a linear map with an adapter added, in float32 or wider.

    Args:
        path: the weight's name in the pruned model.
    """
    adapter = load_adapter(directory, digest_of_adapter)
    change = lora_change(adapter.config, *adapter.factors[path.removesuffix(".weight")])
    total = weight.to("cpu", torch.float64) + change
    return total.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


@lru_cache(maxsize=4)
def load_adapter(directory: str, digest_of_adapter: str) -> LoraAdapter:
    """Loads an adapter that a recipe names with its digest.

    Raises:
        RecipeError: it is absent, is no plain LoRA adapter, or has another digest.
    """
    document, content = _read(Path(directory))
    if (actual := _digest(document, content)) != digest_of_adapter:
        text = f"has the digest {actual}, and the recipe was made with {digest_of_adapter}"
        raise RecipeError(f"{directory} {text}")
    try:
        config = plain_config(document)
    except FamilyError as error:
        raise RecipeError(f"{Path(directory) / CONFIG_FILE}: {error}") from None
    return LoraAdapter(config, _factors(Path(directory) / WEIGHTS_FILE, content, config.r))


def adapter_digest(directory: Path) -> str:
    """Returns the digest of an adapter: its weights, and its settings but those that name a model.

    Raises:
        RecipeError: a file is absent or cannot be read.
    """
    return _digest(*_read(directory))


def public_config(directory: Path) -> str:
    """Returns adapter_config.json without the settings that name a model; the digest stays the same.

    Raises:
        RecipeError: see adapter_digest.
    """
    document, _ = _read(directory)
    return json.dumps({**document, **dict.fromkeys(_OF_MACHINE)}, indent=2) + "\n"


def _digest(document: Mapping[str, Any], content: bytes) -> str:
    settings = {key: value for key, value in sorted(document.items()) if key not in _OF_MACHINE}
    return digest([settings, digest_of_bytes(content)])


def _read(directory: Path) -> tuple[dict[str, Any], bytes]:
    """Returns the settings of an adapter and the content of its weight file."""
    try:
        text = read_bounded(directory / CONFIG_FILE)
        content = read_bounded(directory / WEIGHTS_FILE, MOST_BYTES)
    except FileNotFoundError:
        expected = f"expected a directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise RecipeError(f"no such adapter, found {str(directory)!r}; {expected}") from None
    except OSError as error:
        raise RecipeError(f"{directory} cannot be read: {error.strerror or error}") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RecipeError(f"{directory / CONFIG_FILE} is no JSON object; expected what peft writes")
    return document, content


def _factors(file: Path, content: bytes, rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Reads the two factors of each linear map.

    Raises:
        RecipeError: there are none, or tensors of another kind or shape.
    """
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise RecipeError(f"{file} cannot be read as safetensors: {error}") from None
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise RecipeError(f"{file} has {name}; expected lora_A.weight and lora_B.weight of linear maps")
        shape = list(tensor.shape)
        if len(shape) != 2 or shape["AB".index(match[2])] != rank:
            expected = f"[{rank}, in]" if match[2] == "A" else f"[out, {rank}]"
            raise RecipeError(f"{name} in {file} is {shape}; by r in {CONFIG_FILE} expected {expected}")
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise RecipeError(f"{name} in {file} has values that are not finite numbers")
        factors.setdefault(match[1], {})[match[2]] = tensor
    for path, pair in factors.items():
        if len(pair) < 2:
            letter = "B" if "A" in pair else "A"
            raise RecipeError(f"{file} lacks lora_{letter}.weight of {path}")
    if not factors:
        raise RecipeError(f"{file} holds no tensors; expected the factors of linear maps")
    return {path: (factors[path]["A"], factors[path]["B"]) for path in factors}
