"""When memory runs out: what it looks like, and how work goes on in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch could help."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator and MPS raise plain RuntimeError.
    texts = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def free(device: torch.device) -> None:
    """Give back what nothing holds any more. Not in a handler: its traceback holds on to tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class BatchSize:
    """How many sequences go through a model together: half as many whenever memory runs out.

    Attributes:
        size: what memory has been found to hold so far.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[int], T], device: torch.device) -> T:
        """What `work` gives for a size that memory holds."""
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if self.size == 1 or not is_out_of_memory(error):
                    raise
            self.size //= 2
            free(device)
