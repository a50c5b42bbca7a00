"""Bounds in seconds for what a benchmark measures, and the file that its figures go to as they come."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

AGAIN = 1.0
"""Seconds until what has reached its bound is told once more."""


class BoundReachedError(BaseException):
    """The bound of a part is reached. No `except Exception` of what is measured takes it for a failure."""


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raises BoundReachedError in the block when that many seconds have gone, or those of a bound around it.

    It is raised again and again: Python drops what is raised while an object is being finalised.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise BoundReachedError

    begun = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    around, _ = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, around) if around else seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if around:
            left = around - (time.monotonic() - begun)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001), AGAIN)


@dataclass
class FigureFile:
    """The figures of a benchmark, and the file that holds those that are known."""

    file: Path | None
    document: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Replaces the file whole, where there is one."""
        if self.file is not None:
            beside = self.file.with_suffix(".part")
            beside.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
            beside.replace(self.file)

    def note(self, **figures: Any) -> None:
        """Adds figures, or replaces them, and writes the file."""
        self.document |= figures
        self.write()
