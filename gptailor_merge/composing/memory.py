"""Recognises that memory has run out, and goes on in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")


def is_out_of_memory(error: Exception) -> bool:
    """Tells whether a smaller batch could help.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("out of memory"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator and MPS raise plain RuntimeError.
    texts = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def free(device: torch.device) -> None:
    """Gives unused memory back. Do not call it in an exception handler, whose traceback holds tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class BatchSize:
    """Limits how many sequences go through a model together; halves the limit when memory runs out.

    Attributes:
        size: the largest number of sequences that memory is known or hoped to hold.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[int], T], device: torch.device) -> T:
        """Calls `work` with the limit, again with half of it when memory runs out, and returns its result."""
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if self.size == 1 or not is_out_of_memory(error):
                    raise
            self.size //= 2
            free(device)


def left(device: torch.device) -> int:
    """Returns the bytes that a device has left; those of the host for a CPU."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
