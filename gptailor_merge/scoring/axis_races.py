"""Races in several measures at once: for a front, and against the bounds of gates.

The units of a contestant are those of every measure by itself, so that an estimate is one of each measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptailor_merge.objectives.scores import UNITS, Weights
from gptailor_merge.scoring.racing import (
    FEWEST,
    Race,
    Totals,
    Units,
    compare,
    cut_like,
    extrapolated,
    loss_of,
)

DOMINATORS = 2
"""Candidates that must dominate another beyond doubt before it leaves a race for a front: one would do, but a
point of the front that is lost by chance is lost for good."""


@dataclass(frozen=True)
class AxisRace(Race):
    """A race whose contestants are compared measure by measure.

    Attributes:
        axes: names of the measures.
    """

    axes: tuple[str, ...] = ()

    def units(self, of: Callable[[Weights], Units]) -> Units:
        """Returns the units of every measure; their keys begin with its number."""
        return {
            f"{number} {digest}": values
            for number, axis in enumerate(self.axes)
            for digest, values in of({axis: 1.0}).items()
        }

    def estimates(
        self, finished: Sequence[Units], dropped: Mapping[int, Units], totals: Totals
    ) -> dict[int, float]:
        """Estimates the weighted sums of the measures of dropped candidates."""
        means = self.means(finished, dropped, totals)
        return {
            key: sum(self.weights.get(axis, 0.0) * mean for axis, mean in by_axis.items())
            for key, by_axis in means.items()
        }

    def means(
        self, finished: Sequence[Units], dropped: Mapping[int, Units], totals: Totals
    ) -> dict[int, dict[str, float]]:
        """Estimates each measure: that of the most similar finished candidate, and the paired difference.

        Where none was finished, what a candidate has of a measure so far is extrapolated.
        """
        complete = [units for units in (*finished, *self.incumbents) if math.isfinite(loss_of(units))]
        if complete:
            return {key: self._mean(units, complete, totals) for key, units in dropped.items()}
        return {
            key: {axis: extrapolated(of_axis(units, n), totals) for n, axis in enumerate(self.axes)}
            for key, units in dropped.items()
        }

    def _mean(self, units: Units, complete: Sequence[Units], totals: Totals) -> dict[str, float]:
        rivals = [cut_like(rival, units) for rival in complete]
        compared = [
            compare([of_axis(contender, number) for contender in (units, *rivals)], totals)
            for number in range(len(self.axes))
        ]
        nearest = int(np.argmin(sum(variance[0, 1:] for _, variance in compared)))
        return {
            axis: loss_of(of_axis(complete[nearest], number)) + float(compared[number][0][0, 1 + nearest])
            for number, axis in enumerate(self.axes)
        }


@dataclass(frozen=True)
class FrontRace(AxisRace):
    """Drops the candidates of a generation that `keep` others, incumbents included, dominate beyond doubt.

    In each measure a dominator is better by more than the standard errors of the paired difference, or has
    been measured on everything and is equal; in one it is better.
    """

    def hopeless(self, running: Sequence[Units], totals: Totals) -> list[bool]:
        """Tells for each candidate whether it leaves."""
        if not running:
            return []
        contenders = [*running, *(cut_like(incumbent, running[0]) for incumbent in self.incumbents)]
        worse_somewhere = np.zeros((len(contenders), len(contenders)), dtype=bool)
        better_nowhere = ~worse_somewhere
        for number in range(len(self.axes)):
            difference, variance = compare([of_axis(units, number) for units in contenders], totals)
            with np.errstate(invalid="ignore"):
                beaten = (difference > 0) & (difference > self.certainty * np.sqrt(variance))
            worse_somewhere |= beaten
            better_nowhere &= beaten | ((difference == 0) & (variance == 0))
        dominated = worse_somewhere & better_nowhere
        return [bool(row.sum() >= self.keep) for row in dominated[: len(running)]]


@dataclass(frozen=True)
class MeasureLimit:
    """A bound of a measure, as a number in the units that users see."""

    unit: str
    value: float
    is_upper: bool

    def holds(self, mean: float) -> bool:
        """Tells whether a mean that is minimised is within the bound."""
        natural = UNITS[self.unit](mean)
        return natural <= self.value if self.is_upper else natural >= self.value


@dataclass(frozen=True)
class GateRace(AxisRace):
    """Drops candidates that break a bound beyond doubt, whatever the others have.

    Each is compared with the one incumbent, unit by unit: texts differ more than models do on one text.

    Attributes:
        incumbents: the units of the base model.
        limits: one for each of the axes.
    """

    limits: tuple[MeasureLimit, ...] = ()

    def hopeless(self, running: Sequence[Units], totals: Totals) -> list[bool]:
        """Tells for each candidate whether even its best measures, within the standard errors, are beyond."""
        return [
            not all(
                limit.holds(self._least(units, number, totals)) for number, limit in enumerate(self.limits)
            )
            for units in running
        ]

    def means(
        self, finished: Sequence[Units], dropped: Mapping[int, Units], totals: Totals
    ) -> dict[int, dict[str, float]]:
        """Estimates each measure as `hopeless` does, from the base's and the paired difference."""
        return super().means((), dropped, totals)

    def _least(self, units: Units, number: int, totals: Totals) -> float:
        """Returns a mean that the measure is hardly below when all is scored."""
        (base,) = self.incumbents
        scored = of_axis(units, number)
        if any(len(values) < min(FEWEST, totals[digest]) for digest, values in scored.items()):
            return -math.inf
        difference, variance = compare([scored, of_axis(cut_like(base, units), number)], totals)
        least = loss_of(of_axis(base, number)) + difference[0, 1] - self.certainty * math.sqrt(variance[0, 1])
        return float(least) if math.isfinite(least) else -math.inf


def of_axis(units: Units, number: int) -> Units:
    """Returns the units of the measure of a number, by the digest of their set."""
    begin = f"{number} "
    return {key.removeprefix(begin): values for key, values in units.items() if key.startswith(begin)}
