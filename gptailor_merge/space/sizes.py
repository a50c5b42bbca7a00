"""How large the pruned model is to be, and which layers may go for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any


def removable_layers(depth: int, first: int, last: int, only: Sequence[int] | None) -> tuple[int, ...]:
    """The layers that may go: `only` these, or all, but for the protected first and last."""
    free = range(first, depth - last)
    return tuple(free) if only is None else tuple(sorted(set(only)))


def target_sizes(target: Mapping[str, Any], outer: int, layers: Sequence[int]) -> tuple[int, ...]:
    """Numbers of layers to keep, ascending, for a target of layers, of layers to remove, or of a
    share of parameters; each is one number or a range.

    A share gives the most layers whose parameters are no more than that share of the base's,
    whichever layers these are.

    Args:
        outer: parameters outside the layers.
        layers: parameters of each layer.
    """
    ((unit, given),) = ((unit, given) for unit, given in target.items() if given is not None)
    bounds = [_kept(unit, one, outer, layers) for one in (given if isinstance(given, tuple) else (given,))]
    return tuple(range(min(bounds), max(bounds) + 1))


def _kept(unit: str, given: float, outer: int, layers: Sequence[int]) -> int:
    if unit == "layers":
        return int(given)
    if unit == "remove":
        return len(layers) - int(given)
    allowed = given * (outer + sum(layers)) - outer
    largest_first = accumulate(sorted(layers, reverse=True))
    return sum(parameters <= allowed for parameters in largest_first)
