"""Scores: means that are minimised, and how users see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

Weights = Mapping[str, float]
"""Objective name -> its weight in the loss."""


UNITS: Mapping[str, Callable[[float], float]] = {
    **dict.fromkeys(("plain", "nats", "count", "bytes", "ms"), lambda mean: mean),
    "perplexity": lambda mean: math.exp(mean) if mean < 700 else math.inf,
    "bits": lambda mean: mean / math.log(2),
    "negated": lambda mean: -mean,
}
"""Unit -> how users see a mean that is minimised: as it is, its exponential, in bits, with the other sign."""


COSTS = ("count", "bytes", "ms")
"""The units of costs, as against those of quality."""


@dataclass(frozen=True)
class Score:
    """A mean that is minimised.

    Attributes:
        mean: the minimised number, in nats or in whatever an objective counts.
        count: how many predicted tokens, items or words the mean is over.
        unit: how users see the mean, see UNITS.
        error: standard error of the mean, where it was estimated; equal scores may differ in it.
    """

    mean: float
    count: float
    unit: str = "nats"
    error: float | None = field(default=None, compare=False)

    @property
    def natural(self) -> float:
        """The mean as users see it."""
        return UNITS[self.unit](self.mean)

    @property
    def natural_error(self) -> float | None:
        """The standard error as users see it: half the distance from mean - error to mean + error."""
        if self.error is None:
            return None
        natural = UNITS[self.unit]
        return abs(natural(self.mean + self.error) - natural(self.mean - self.error)) / 2

    @staticmethod
    def total(scores: Sequence[Score]) -> Score:
        """Returns the mean over everything that several scores of one objective are means over.

        Its standard error is that of a stratified sample, since the scores are independent of each other.

        >>> Score.total([Score(1.0, 10), Score(4.0, 30)])
        Score(mean=3.25, count=40, unit='nats', error=None)
        """
        count = sum(score.count for score in scores)
        errors = [score.error * score.count for score in scores if score.error is not None]
        error = math.hypot(*errors) / count if len(errors) == len(scores) else None
        return Score(sum(s.mean * s.count for s in scores) / count, count, scores[0].unit, error)


Scores = Mapping[str, Mapping[str, Score]]
"""Objective name -> set name -> score."""


def with_means(scores: Scores, means: Mapping[str, float]) -> Scores:
    """Returns scores whose totals have these means; all sets of an objective are moved alike.

    >>> with_means({"kl": {"a": Score(1.0, 1), "b": Score(2.0, 1)}}, {"kl": 1.75})["kl"]["b"].mean
    2.25
    """
    moved = dict(scores)
    for name, mean in means.items():
        by = mean - Score.total(list(scores[name].values())).mean
        moved[name] = {key: replace(score, mean=score.mean + by) for key, score in scores[name].items()}
    return moved


TOTAL = "total"
"""The key of an objective's score over all of its sets."""


def natural(scores: Scores) -> dict[str, dict[str, float]]:
    """Returns scores in the units that users see, with a total over each objective's sets."""
    shown = {}
    for objective, by_set in scores.items():
        units = {name: score.natural for name, score in by_set.items()}
        shown[objective] = {**units, TOTAL: Score.total(list(by_set.values())).natural}
    return shown
