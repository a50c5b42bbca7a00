"""Checks config.json: transformers reads it, and it agrees with itself and with the stored weights."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from gptailor_merge.checking.finding import Finding, reason
from gptailor_merge.checking.weight_files import StoredWeights
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.configs import bounded_modules, build, load_config, read_config
from gptailor_merge.models.depth import DEPTH, inconsistencies
from gptailor_merge.models.dtypes import STORED_DTYPES, dtype_name
from gptailor_merge.models.nesting import loaded_text_of, text_of
from gptailor_merge.models.stored_values import stored_head

LARGEST_LACK = 10_000_000
"""Parameters that may be missing without the model counting as another."""


@dataclass(frozen=True)
class ConfigFile:
    """The config.json of a model directory, as it is written and as transformers reads it.

    Attributes:
        raw: the document.
        loaded: the config with the defaults of its model type; None where transformers refuses it.
        refusal: why transformers refuses it; empty where it does not.
    """

    raw: Mapping[str, Any]
    loaded: PreTrainedConfig | None
    refusal: str

    @classmethod
    def read(cls, directory: Path) -> ConfigFile:
        """Reads the config of a model directory.

        Raises:
            FamilyError: there is no directory, or no config.json that holds a JSON object.
        """
        raw = read_config(directory)
        try:
            return cls(raw, load_config(directory), "")
        except FamilyError as error:
            cause = error.__cause__
            return cls(raw, None, reason(cause if isinstance(cause, Exception) else error))

    def number(self, key: str) -> int | None:
        """Returns a whole number of the language model's config; the raw one if transformers refuses it."""
        if self.loaded is None:
            value = text_of(self.raw).get(key)
        else:
            value = getattr(loaded_text_of(self.loaded), key, None)
        return value if isinstance(value, int) else None

    @property
    def depths(self) -> tuple[int, ...]:
        """Every number of layers that the files may hold; empty where the config names none.

        Layers for multi-token prediction are stored behind the others without being counted among them.
        """
        depth = self.number(DEPTH)
        return () if depth is None else (depth, depth + (self.number("num_nextn_predict_layers") or 0))


def check_config(config: ConfigFile, weights: StoredWeights, *, loads: bool = False) -> Finding:
    """Checks that config.json describes each stored layer, and no other.

    Args:
        loads: whether the model is loaded, which compares layers that are not one list: those of an encoder
            with a decoder, say.
    """
    depth = config.number(DEPTH)
    problems = [] if depth is None else inconsistencies({DEPTH: depth, **text_of(config.raw)})
    if config.loaded is None:
        problems.append(f"transformers refuses it: {config.refusal}")
    indices = sorted(weights.layers)
    if depth is None:
        problems.append("num_hidden_layers is missing; expected a language model that is a list of layers")
    elif (weights.prefix is not None or not loads) and not _fit(indices, config.depths):
        problems.append(
            f"num_hidden_layers is {config.depths[0]}, the safetensors files hold {_layers(indices)}"
        )
    if problems:
        return Finding("config", "fail", "; ".join(problems))
    if head := _stored_head(config, weights):
        return Finding(
            "config",
            "warn",
            f"tie_word_embeddings is true, and {head} is stored and differs from the embeddings; "
            "transformers takes the stored head, others the embeddings: tie_word_embeddings: false or a file "
            f"without {head} would be clear",
        )
    stored = ", as many as are stored" if indices == list(range(depth or 0)) else ""
    sentence = f"{config.raw.get('model_type')}, {depth} layers{stored}"
    return Finding("config", "ok", sentence)


def _fit(indices: Sequence[int], depths: Sequence[int]) -> bool:
    """Tells whether stored layers are those of a model of one of these depths; no list is made of a depth."""
    return list(indices) == list(range(len(indices))) and len(indices) in depths


def unloadable(config: ConfigFile, weights: StoredWeights) -> str:
    """Returns why a model must not be loaded to try it; empty where it may.

    transformers runs the code of quantisers, which may fetch more, and fills what the files lack with
    random values, however large the config says it is.
    """
    if config.raw.get("quantization_config"):
        return "it is quantised, and loading it would run its quantiser"
    if config.depths and config.depths[0] > len(weights.tensors):
        stored = f"the files hold {len(weights.tensors):,} tensors"
        return f"config.json describes {config.depths[0]:,} layers, {stored}"
    try:
        with bounded_modules(len(weights.tensors)), torch.device("meta"), no_init_weights():
            model = build(copy.deepcopy(config.loaded))
    except FamilyError as error:
        return str(error)
    except Exception:  # whatever it is, loading will tell
        return ""
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > LARGEST_LACK + 4 * weights.parameters:
        return f"config.json describes {described:,} parameters, the files hold {weights.parameters:,}"
    return ""


def check_dtypes(config: ConfigFile, weights: StoredWeights) -> Finding:
    """Checks that config.json names a dtype that is stored: `dtype="auto"` loads in the one it names."""
    counts = Counter(header.dtype for header in weights.tensors.values())
    stored = ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items())) or "no tensors"
    declared = config.raw.get("dtype", config.raw.get("torch_dtype"))
    right = {dtype_name(dtype) for dtype in counts if _is_float(dtype)}
    if (
        "quantization_config" not in config.raw
        and declared is not None
        and right
        and str(declared) not in right
    ):
        return Finding(
            "dtypes",
            "warn",
            f"stored are {stored}, config.json has dtype {declared!r} and transformers converts when "
            f"loading; {' or '.join(sorted(right))} would be right",
        )
    return Finding("dtypes", "ok", f"tensors by dtype: {stored}")


def _stored_head(config: ConfigFile, weights: StoredWeights) -> str | None:
    """Returns the name of a stored head that the config ties to other values, or None."""
    assert config.loaded is not None
    files = {name: weights.directory / header.file for name, header in weights.tensors.items()}
    try:
        return stored_head(config.loaded.to_dict(), files)
    except Exception:  # not every sound model is of a family's form
        return None


def _layers(indices: Sequence[int]) -> str:
    if not indices:
        return "no layers"
    if list(indices) == list(range(len(indices))):
        return f"layers 0 to {len(indices) - 1}"
    return f"layers {', '.join(map(str, indices))}"


def _is_float(stored: str) -> bool:
    """Tells whether a dtype is one that models are computed in; 8 bits only store them."""
    dtype = STORED_DTYPES.get(stored)
    return dtype is not None and dtype.is_floating_point and dtype.itemsize > 1
