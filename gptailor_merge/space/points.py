"""Points of a search space: arrays with entries in [0, 1], and how choices and weights lie in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptailor_merge.errors import ConfigError

Array = NDArray[np.float64]


Point = Mapping[str, Array]


WEIGHTS = (0.05, 1.0)
"""Range of a source's merge weight."""


DECIMALS = 2
"""Merge weights are rounded, so that recipes are readable and equal ones are recognised."""


def index(value: float, count: int) -> int:
    """Which of `count` choices an entry is; each has an equal part of [0, 1]."""
    return min(int(np.clip(value, 0, 1) * count), count - 1)


def middle(choice: int, count: int) -> float:
    """The entry in the middle of a choice's part."""
    return (choice + 0.5) / count


def offset(value: float, reach: int) -> int:
    """How far from a slot's own layer an entry points; half of [0, 1] stays where it is."""
    lean = 4 * float(np.clip(value, 0, 1)) - 2
    if abs(lean) <= 1:
        return 0
    return int(np.sign(lean)) * (index(abs(lean) - 1, reach) + 1)


def at_offset(steps: int, reach: int) -> float:
    """The entry that points so far."""
    if steps == 0:
        return 0.5
    return 0.5 + float(np.sign(steps)) * (1 + middle(abs(steps) - 1, reach)) / 4


def scale(value: float) -> float:
    """The merge weight of an entry."""
    low, high = WEIGHTS
    return round(float(low + (high - low) * np.clip(value, 0, 1)), DECIMALS)


def unscale(weight: Any) -> float:
    """The entry of a merge weight.

    Raises:
        ConfigError: a weight that differs by tensor.
    """
    if isinstance(weight, tuple):
        raise ConfigError("the recipe's weights differ by tensor, and this space has no such merges")
    low, high = WEIGHTS
    return (float(weight) - low) / (high - low)
