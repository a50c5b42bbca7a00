"""NSGA-II's selection, with nevergrad's parts (K. Deb et al., 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nevergrad.optimization.multiobjective import nsga2


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether one is nowhere worse and somewhere better; lower is better."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


class _Ranking(nsga2.FastNonDominatedRanking):  # type: ignore[misc]
    def compare(self, candidate1: Any, candidate2: Any) -> int:
        """nevergrad counts who wins in more objectives: with three the largest model would win alone."""
        one, two = candidate1.losses, candidate2.losses
        return int(np.any(two < one)) - int(np.any(one < two)) if _comparable(one, two) else 0


def _comparable(one: Any, two: Any) -> bool:
    return bool(np.all(one <= two) or np.all(two <= one))


def rank(population: list[Any], n_selected: int) -> dict[str, int]:
    """Those that stay: front by front, of the last front those with the most room around them."""
    chosen: dict[str, int] = {}
    crowding = nsga2.CrowdingDistance()
    for number, front in enumerate(_Ranking().compute_ranking(population, k=n_selected)):
        crowding.compute_distance(front)
        for candidate in crowding.sort(front)[: n_selected - len(chosen)]:
            chosen[candidate.uid] = number
    return chosen
