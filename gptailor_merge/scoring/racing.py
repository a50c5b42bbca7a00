"""Races candidates: those that cannot be among the best leave before they are scored on everything.

Two candidates are compared by paired differences, token by token, on the tokens that both were scored
on so far. The sets are strata: each takes part in every rung, so that only differences within a set are
left to chance, and tokens that have been scored are known and no longer chance (the correction for
a finite population). With n of N tokens of a set scored, mean difference d and its variance s²,

    D = Σ_sets N d,   Var D = Σ_sets N² (1 − n/N) s²/n

(W. G. Cochran, Sampling Techniques, 1977, equations 5.1 and 5.6.) A few units say little about s²: two
items that one candidate gets right and another gets wrong have s² = 0. As long as fewer than FEWEST units
of a set are scored, s² is taken as no less than the mean square of the differences between all candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptailor_merge.objectives.scores import Weights

Units = Mapping[str, NDArray[np.float64]]
"""Digest of a set -> what each of its units (tokens, items) scored so far adds to the loss."""


Totals = Mapping[str, int]
"""Digest of a set -> the number of its units."""


CERTAINTY = 4.0
"""A difference counts if it is larger than this many standard errors of the formula. Neighbouring tokens are
not independent: on the built-in family true errors are about 1.8 times those of the formula, so that 4 of
the formula's standard errors are a little more than 2 true ones."""


FEWEST = 8
"""Fewest units of a set from which the variance of a difference is estimated."""


@dataclass(frozen=True)
class Race:
    """Says how many candidates of a generation are kept, and who drops out.

    Attributes:
        keep: how many of the best, incumbents included, are scored on everything.
        weights: objective -> its weight in the loss.
        incumbents: units of candidates scored before, which new ones have to beat.
        certainty: standard errors that a difference must exceed to count.
    """

    keep: int
    weights: Weights
    incumbents: tuple[Units, ...] = ()
    certainty: float = CERTAINTY

    def units(self, of: Callable[[Weights], Units]) -> Units:
        """Returns what the race compares of a candidate.

        Args:
            of: weights of objectives -> what each unit of the candidate adds to their weighted sum.
        """
        return of(self.weights)

    def hopeless(self, running: Sequence[Units], totals: Totals) -> list[bool]:
        """Tells for each candidate whether `keep` others, incumbents included, are better beyond doubt."""
        if not running:
            return []
        contenders = [*running, *(cut_like(incumbent, running[0]) for incumbent in self.incumbents)]
        difference, variance = compare(contenders, totals)
        with np.errstate(invalid="ignore"):
            beaten = difference > self.certainty * np.sqrt(variance)
        # Equal candidates differ by nothing with no variance; neither beats the other.
        beaten &= difference > 0
        return [bool(row.sum() >= self.keep) for row in beaten[: len(running)]]

    def estimates(
        self, finished: Sequence[Units], dropped: Mapping[int, Units], totals: Totals
    ) -> dict[int, float]:
        """Estimates the losses of dropped candidates.

        An estimate is the loss of the best finished candidate plus the paired difference to it so far, and
        no less than the loss that it takes to be kept, since that has been ruled out. Where no candidate
        was finished, because all that a candidate was dropped for failed later, its loss so far is
        extrapolated.
        """
        complete = [units for units in (*finished, *self.incumbents) if not np.isnan(loss_of(units))]
        if not complete:
            return {key: extrapolated(units, totals) for key, units in dropped.items()}
        losses = sorted(loss_of(units) for units in complete)
        least = losses[min(self.keep, len(losses)) - 1]
        best = min(complete, key=loss_of)
        estimates = {}
        for key, units in dropped.items():
            difference, _ = compare([units, cut_like(best, units)], totals)
            estimates[key] = max(least, losses[0] + float(difference[0, 1]))
        return estimates

    def means(
        self, finished: Sequence[Units], dropped: Mapping[int, Units], totals: Totals
    ) -> Mapping[int, Mapping[str, float]]:
        """Estimates each objective of dropped candidates, where the race looks at them one by one."""
        return {}


@dataclass(frozen=True)
class Selection(Race):
    """Lets only `keep` candidates go on after the first rung, however uncertain their lead."""

    def hopeless(self, running: Sequence[Units], totals: Totals) -> list[bool]:
        """Tells for each candidate whether `keep` others are better so far."""
        losses = [extrapolated(units, totals) for units in running]
        order = sorted(range(len(losses)), key=lambda n: (math.isnan(losses[n]), losses[n], n))
        stay = set(order[: self.keep])
        return [number not in stay for number in range(len(losses))]


def loss_of(units: Units) -> float:
    """Returns the loss of a candidate that was scored on everything."""
    return float(sum(values.sum() for values in units.values()))


def compare(contenders: Sequence[Units], totals: Totals) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compares each two contenders, which must have been scored on the same tokens.

    Returns:
        (estimated loss of i − that of j, its variance), both [contenders, contenders].
    """
    count = len(contenders)
    difference, variance = np.zeros((count, count)), np.zeros((count, count))
    for digest in contenders[0]:
        values = np.stack([units[digest] for units in contenders])
        scored, total = values.shape[1], totals[digest]
        means = values.mean(axis=1)
        difference += total * (means[:, None] - means[None])
        if scored == total:
            continue
        spread = _spread(values) if scored > 1 else np.zeros((count, count))
        if scored < FEWEST:
            spread = np.maximum(spread, _mean_square(values))
        variance += total**2 * (1 - scored / total) * spread / scored
    return difference, variance


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the variance over units of the difference between each two rows [contenders, contenders]."""
    centred = values - values.mean(axis=1, keepdims=True)
    products = centred @ centred.T / (values.shape[1] - 1)
    variances = products.diagonal()
    spread: NDArray[np.float64] = np.maximum(variances[:, None] + variances[None] - 2 * products, 0)
    return spread


def _mean_square(values: NDArray[np.float64]) -> float:
    """Returns the mean square of the differences between any two rows; infinite without two finite rows."""
    finite = values[np.isfinite(values).all(axis=1)]
    return 2 * float(finite.var(axis=0, ddof=1).mean()) if len(finite) > 1 else np.inf


def extrapolated(units: Units, totals: Totals) -> float:
    """Returns the loss that a candidate has if its further units are like those so far."""
    return float(sum(totals[digest] * values.mean() for digest, values in units.items()))


def cut_like(units: Units, like: Units) -> Units:
    """Returns the first units of each set, as many as `like` has."""
    return {digest: units[digest][: len(values)] for digest, values in like.items()}
