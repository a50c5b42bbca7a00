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


@dataclass(eq=False)
class Bound:
    """A time by which a block ends.

    Attributes:
        deadline: by the monotonic clock, seconds.
        reached: True where the block was ended before its end.
    """

    deadline: float
    reached: bool = False


class BoundReachedError(BaseException):
    """The bound of a block is reached. No `except Exception` of what is measured takes it for a failure."""

    def __init__(self, bound: Bound) -> None:
        super().__init__()
        self.bound = bound


_ACTIVE: list[Bound] = []
"""The bounds of the blocks that are running, the outermost first."""


@contextmanager
def bounded(seconds: float) -> Iterator[Bound]:
    """Ends the block when that many seconds have gone; a bound around it ends that block, too.

    It is tried again and again: Python drops what is raised while an object is being finalised.
    """
    bound = Bound(time.monotonic() + seconds)
    before = signal.signal(signal.SIGALRM, _stop)
    _ACTIVE.append(bound)
    _set_timer()
    try:
        yield bound
    except BoundReachedError as error:
        if error.bound is not bound:
            raise
        bound.reached = True
    finally:
        _ACTIVE.remove(bound)
        _set_timer()
        signal.signal(signal.SIGALRM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    for bound in _ACTIVE:
        if time.monotonic() >= bound.deadline:
            raise BoundReachedError(bound)


def _set_timer() -> None:
    """Has the next of the bounds that are active told, where there is one."""
    left = min((bound.deadline for bound in _ACTIVE), default=None)
    seconds = 0.0 if left is None else max(left - time.monotonic(), 0.001)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN if seconds else 0.0)


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
