"""What a model takes, by its files: parameters, bytes, KV cache. No weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gptailor_merge.models.checkpoint import Header, ModelId, read
from gptailor_merge.objectives.kv_cache import CONTEXT, KVCache

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""As safetensors calls them."""


@dataclass(frozen=True)
class Size:
    """Of one model.

    Attributes:
        kv_cache: bytes per token of a context of costs.CONTEXT tokens; None where it cannot be told.
    """

    layers: int
    parameters: int
    bytes: int
    kv_cache: float | None


def size_of(model: str) -> Size:
    """The size of a model.

    Args:
        model: a directory, or a Hub id.

    Raises:
        FamilyError: it cannot be read.
    """
    config, headers = read(ModelId.parse(model))
    settings = AutoConfig.from_pretrained(config.parent, trust_remote_code=False)
    return Size(
        layers=int(settings.get_text_config().num_hidden_layers),
        parameters=sum(math.prod(header.shape) for header in headers.values()),
        bytes=sum(math.prod(h.shape) * _DTYPES[h.dtype].itemsize for h in headers.values()),
        kv_cache=_kv_cache(config.parent, _dtype(headers)),
    )


def _dtype(headers: Mapping[str, Header]) -> torch.dtype:
    """The dtype of most of the numbers."""
    counted: dict[str, int] = {}
    for header in headers.values():
        counted[header.dtype] = counted.get(header.dtype, 0) + math.prod(header.shape)
    return _DTYPES[max(counted, key=counted.__getitem__)]


def _kv_cache(directory: Path, dtype: torch.dtype) -> float | None:
    """Measured on a model without weights, as the search's own objective measures it."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    measure = KVCache("kv_cache", dtype, CONTEXT)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.inference_mode():
            return float(measure.measure("model", model, 0, 1)[0])
    except Exception:  # some architectures look at values, which there are none of
        return None
