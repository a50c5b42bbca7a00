"""Points of a search space: arrays with entries in [0, 1] that stand for choices, steps and weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.plan import Filtered, Scalar

Array = NDArray[np.float64]


Point = Mapping[str, Array]


WEIGHTS = (0.05, 1.0)
"""The range of a source's merge weight."""


DECIMALS = 2
"""Merge weights are rounded, so that recipes are readable and equal ones are recognised."""


def index(value: float, count: int) -> int:
    """Returns which of `count` choices an entry stands for; each has an equal part of [0, 1].

    >>> [index(value, 4) for value in (0.0, 0.3, 0.99, 1.0)]
    [0, 1, 3, 3]
    """
    return min(int(np.clip(value, 0, 1) * count), count - 1)


def middle(choice: int, count: int) -> float:
    """Returns the entry in the middle of a choice's part; the inverse of `index`."""
    return (choice + 0.5) / count


def offset(value: float, reach: int) -> int:
    """Returns how many layers an entry steps away from a slot's own; half of [0, 1] stays where it is.

    >>> [offset(value, reach=2) for value in (0.0, 0.2, 0.5, 0.8, 1.0)]
    [-2, -1, 0, 1, 2]
    """
    lean = 4 * float(np.clip(value, 0, 1)) - 2
    if abs(lean) <= 1:
        return 0
    return int(np.sign(lean)) * (index(abs(lean) - 1, reach) + 1)


def at_offset(steps: int, reach: int) -> float:
    """Returns the entry that steps this far; the inverse of `offset`."""
    if steps == 0:
        return 0.5
    return 0.5 + float(np.sign(steps)) * (1 + middle(abs(steps) - 1, reach)) / 4


def scale(value: float) -> float:
    """Returns the merge weight that an entry stands for."""
    low, high = WEIGHTS
    return round(float(low + (high - low) * np.clip(value, 0, 1)), DECIMALS)


def unscale(weight: Scalar | Filtered) -> float:
    """Returns the entry of a merge weight; the inverse of `scale`.

    Raises:
        ConfigError: the weight differs by tensor.
    """
    if isinstance(weight, tuple):
        raise ConfigError("the recipe's weights differ by tensor, and this space has no such merges")
    low, high = WEIGHTS
    return (float(weight) - low) / (high - low)
