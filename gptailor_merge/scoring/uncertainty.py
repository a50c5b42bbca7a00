"""Estimates how sure a score is, by the standard error of the mean that it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.calibration.token_trees import ItemSet
from gptailor_merge.objectives.protocols import Objective
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.scoring.passes import Measured, Passes


def with_errors(passes: Passes, measured: Measured) -> Scores:
    """Returns the scores of what was measured, each with its standard error, where it has one."""
    by_name = {objective.name: objective for objective in passes.objectives}
    return {
        objective: {
            name: replace(
                score, error=standard_error(observations(by_name[objective], name, measured[objective, name]))
            )
            for name, score in by_set.items()
        }
        for objective, by_set in passes.scores(measured).items()
    }


def standard_error(observed: NDArray[np.float64]) -> float | None:
    """Returns the standard error of a ratio of sums, to first order.

    The formula is W. Cochran's (Sampling Techniques, 1977, 6.4). For items that count alike it is
    the sample's standard deviation over the root of their number.

    Args:
        observed: (sum of units, what it is divided by) of each observation [observations, 2].

    Returns:
        None for a single observation.
    """
    count = len(observed)
    if count < 2:
        return None
    units, sizes = observed.sum(axis=0)
    residuals = observed[:, 0] - units / sizes * observed[:, 1]
    return math.sqrt(count / (count - 1) * float(residuals @ residuals)) / float(sizes)


def observations(
    objective: Objective, set_name: str, parts: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Returns what is independent in a set: its items, or in texts its sequences.

    Args:
        parts: the units of the set, rung by rung.

    Returns:
        (sum of units, what it is divided by) of each item or sequence [observations, 2].
    """
    units = np.concatenate(parts)
    sizes = np.array([objective.size(set_name, n) for n in range(len(units) + 1)])
    pairs = np.stack([units, np.diff(sizes)], axis=-1)
    measured_on = next(s for s in objective.sets if s.name == set_name)
    if not isinstance(measured_on, TokenSet) or isinstance(measured_on, ItemSet):
        return pairs
    starts = np.cumsum([0, *(len(ids) - 1 for ids in measured_on.sequences)])[:-1]
    summed: NDArray[np.float64] = np.add.reduceat(pairs, starts)
    return summed
