"""Measures what a model takes: parameters, bytes, KV cache; it reads headers and loads no weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gptailor_merge.models.checkpoint import Header, ModelId, read
from gptailor_merge.models.configs import build, load_config
from gptailor_merge.models.dtypes import STORED_DTYPES
from gptailor_merge.objectives.kv_cache import CONTEXT, KVCache


@dataclass(frozen=True)
class ModelSize:
    """The space that a model takes.

    Attributes:
        bytes: of the weights.
        kv_cache: bytes per token, in a context of costs.CONTEXT tokens; None where it cannot be measured.
    """

    layers: int
    parameters: int
    bytes: int
    kv_cache: float | None


def size_of(model: str) -> ModelSize:
    """Returns the size of a model.

    Args:
        model: a directory, or a Hub id.

    Raises:
        FamilyError: the model cannot be read.
    """
    config, headers = read(ModelId.parse(model))
    model_config = load_config(config.parent)
    return ModelSize(
        layers=int(model_config.get_text_config().num_hidden_layers),
        parameters=sum(math.prod(header.shape) for header in headers.values()),
        bytes=sum(math.prod(h.shape) * STORED_DTYPES[h.dtype].itemsize for h in headers.values()),
        kv_cache=_kv_cache(config.parent, _dtype(headers)),
    )


def _dtype(headers: Mapping[str, Header]) -> torch.dtype:
    """Returns the dtype that most of the values have."""
    counted: dict[str, int] = {}
    for header in headers.values():
        counted[header.dtype] = counted.get(header.dtype, 0) + math.prod(header.shape)
    return STORED_DTYPES[max(counted, key=counted.__getitem__)]


def _kv_cache(directory: Path, dtype: torch.dtype) -> float | None:
    """Measures on a model without weights, as the objective kv_cache of a search does."""
    config = load_config(directory)
    measure = KVCache("kv_cache", dtype, CONTEXT)
    try:
        with torch.device("meta"):
            model = build(config, dtype=dtype)
        with torch.inference_mode():
            return float(measure.measure("model", model, 0, 1)[0])
    except Exception:  # some architectures look at values, and the meta device has none
        return None
