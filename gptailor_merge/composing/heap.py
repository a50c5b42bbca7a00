"""Gives freed heap back to the operating system; glibc keeps it where thousands of layers come and go."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from functools import lru_cache

SECONDS_APART = 3.0
"""Least time between two trims: each takes about 20 ms, with the pages that are touched again afterwards."""


class HeapTrimmer:
    """Trims the heap of this process now and then; does nothing where the C library is not glibc."""

    def __init__(self) -> None:
        self._trimmed = time.monotonic()

    def trim(self) -> None:
        """Gives freed memory back, if that was not done just now."""
        if time.monotonic() - self._trimmed >= SECONDS_APART:
            trim_of_glibc()(0)
            self._trimmed = time.monotonic()


@lru_cache(maxsize=1)
def trim_of_glibc() -> Callable[[int], int]:
    """Returns glibc's `malloc_trim`, or a function that does nothing."""
    if sys.platform != "linux":
        return lambda kept: 0
    trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: 0)
    return trim
