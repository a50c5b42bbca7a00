"""The dtypes that safetensors files hold, by the names that their headers use."""

from __future__ import annotations

from collections.abc import Mapping

import torch

STORED_DTYPES: Mapping[str, torch.dtype] = {
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
"""Name in a header -> dtype."""


def dtype_name(stored: str) -> str:
    """Returns the name that configs and recipes use for a dtype of a header.

    >>> dtype_name("BF16")
    'bfloat16'
    """
    return str(STORED_DTYPES[stored]).removeprefix("torch.")
