"""The target of a search: how many layers stay, and which may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any


def removable_layers(depth: int, first: int, last: int, only: Sequence[int] | None) -> tuple[int, ...]:
    """Returns the layers that may be removed: `only` these, or all but the protected first and last.

    >>> removable_layers(6, first=1, last=2, only=None)
    (1, 2, 3)
    """
    unprotected = range(first, depth - last)
    return tuple(unprotected) if only is None else tuple(sorted(set(only)))


def target_sizes(target: Mapping[str, Any], outer: int, layers: Sequence[int]) -> tuple[int, ...]:
    """Returns the numbers of layers to keep, ascending.

    Args:
        target: the number of `layers` to keep, of layers to `remove`, or a share of `parameters`; a number
            or a range (lowest, highest). A share means the most layers that have no more than this share
            of the base's parameters, whichever layers they are.
        outer: parameters outside the layers.
        layers: parameters of each layer.

    >>> target_sizes({"remove": (1, 3)}, outer=50, layers=[100] * 12)
    (9, 10, 11)
    """
    ((unit, amount),) = ((unit, amount) for unit, amount in target.items() if amount is not None)
    bounds = amount if isinstance(amount, tuple) else (amount,)
    sizes = [_size(unit, bound, outer, layers) for bound in bounds]
    return tuple(range(min(sizes), max(sizes) + 1))


def _size(unit: str, amount: float, outer: int, layers: Sequence[int]) -> int:
    if unit == "layers":
        return int(amount)
    if unit == "remove":
        return len(layers) - int(amount)
    allowed = amount * (outer + sum(layers)) - outer
    largest_first = accumulate(sorted(layers, reverse=True))
    return sum(parameters <= allowed for parameters in largest_first)
