"""Estimates how long the steps of something that takes long still take, and says it."""

from __future__ import annotations

import re
import time


class StepClock:
    """Estimates how long the steps that are left take, from those that it has seen.

    Args:
        step: the number of steps that were done before.
    """

    def __init__(self, step: int, steps: int) -> None:
        self._begun, self._step, self._steps = time.monotonic(), step, steps

    def left(self, step: int) -> str:
        """Says about how long, as the end of a clause; nothing where it is unknown or no step is left."""
        if not self._step < step < self._steps:
            return ""
        return time_left((time.monotonic() - self._begun) / (step - self._step) * (self._steps - step))


def time_left(seconds: float) -> str:
    """Says about how long is left, as the end of a clause.

    >>> time_left(99), time_left(150)
    (', about 99 s left', ', about 2 min left')
    """
    return f", about {f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'} left"


def without_time_left(sentence: str) -> str:
    """Returns a sentence that is told later without what it says of the time left.

    >>> without_time_left("step 3 of 9" + time_left(99) + ": loss 2.1")
    'step 3 of 9: loss 2.1'
    """
    return re.sub(r", about \d+ (s|min) left", "", sentence)
