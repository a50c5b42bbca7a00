"""Devices, and the dtypes that models are stored and computed in."""

from __future__ import annotations

import torch

from gptailor_merge.errors import ConfigError, FamilyError
from gptailor_merge.models.dtypes import dtype_name
from gptailor_merge.models.family import Member

_DTYPES = ("BF16", "F16", "F32")


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: an unknown device, or one that this machine does not have.
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
    """float32 on the CPU, which is slow at anything else; else what the model is written in."""
    return torch.float32 if device.type == "cpu" else getattr(torch, out_dtype)


def stored_dtype(member: Member) -> str:
    """The dtype that a member's first layer is stored in, as recipes name it."""
    stored = next(member.headers[name].dtype for name in member.layer_tensors(0).values())
    if stored not in _DTYPES:
        raise FamilyError(f"{member.model}: stored as {stored}; expected one of {', '.join(_DTYPES)}")
    return dtype_name(stored)
