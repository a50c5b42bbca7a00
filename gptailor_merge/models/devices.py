"""Devices, and the dtypes that models are stored and computed in."""

from __future__ import annotations

import torch

from gptailor_merge.errors import ConfigError, FamilyError
from gptailor_merge.models.dtypes import dtype_name
from gptailor_merge.models.member import Member

FREE_SHARE = 0.7
"""Weights that need more than this share of a GPU's free memory stay in the host's memory."""


_DTYPES = ("BF16", "F16", "F32")


def pick_device(name: str) -> torch.device:
    """Returns the device of that name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: the device is unknown, or this machine does not have it.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device, found {name!r}; known are auto, cpu, cuda, mps") from None
    if not available.get(device.type, False):
        raise ConfigError(f"this machine has no {device.type}; use --device auto or cpu")
    return device


def compute_dtype(device: torch.device, out_dtype: str) -> torch.dtype:
    """Returns the dtype to run in: float32 on the CPU, where others are slow; else the model's own."""
    return torch.float32 if device.type == "cpu" else getattr(torch, out_dtype)


def stored_dtype(member: Member) -> str:
    """Returns the dtype that a member's first layer is stored in, as recipes name it.

    Raises:
        FamilyError: the layer is stored in a dtype that cannot be merged.
    """
    names = (name for name in member.layer_tensors(0).values() if name in member.stored_tensors)
    stored = next(member.headers[name].dtype for name in names)
    if stored not in _DTYPES:
        raise FamilyError(f"{member.model}: stored as {stored}; expected one of {', '.join(_DTYPES)}")
    return dtype_name(stored)
