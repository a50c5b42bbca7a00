"""Estimates how much better a model looks on what it was chosen by than on what it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptailor_merge.objectives.scores import UNITS, Score
from gptailor_merge.scoring.passes import Measured, Passes
from gptailor_merge.scoring.uncertainty import observations

DRAWS = 2000
"""Samples of the bootstrap."""


COVERAGE = 0.95
"""Share of the samples that lie in the interval."""


@dataclass(frozen=True)
class Pair:
    """An objective that is searched on, and its counterpart that is held out.

    Attributes:
        searched: name of the objective.
        held_out: name of its counterpart.
        sets: names of the sets that both have.
    """

    searched: str
    held_out: str
    sets: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """A search score minus its held-out score, in the units that users see.

    Attributes:
        objective: its name.
        sets: the data that both scores are on.
        searched: the search score.
        held_out: the held-out score.
        low, high: ends of the gap's interval.
    """

    objective: str
    sets: tuple[str, ...]
    searched: float
    held_out: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """The gap."""
        return self.searched - self.held_out


def gap(
    pair: Pair,
    searched: tuple[Passes, Measured],
    held_out: tuple[Passes, Measured],
    seed: int,
) -> Gap:
    """Returns the gap, with the percentile interval of the bootstrap (B. Efron, 1979) over items.

    Both samples are drawn anew, independently. In texts whole sequences are drawn, since their tokens are
    not independent of each other.

    Args:
        searched: the passes of the search, and what a model measured in them.
        held_out: the same for the held-out set.
        seed: of the draws.
    """
    rng = np.random.RandomState(seed)
    scores, drawn = [], []
    for (passes, measured), name in ((searched, pair.searched), (held_out, pair.held_out)):
        objective = next(o for o in passes.objectives if o.name == name)
        samples = [observations(objective, s, measured[name, s]) for s in pair.sets]
        total = Score.total([objective.score(s, np.concatenate(measured[name, s])) for s in pair.sets])
        natural = UNITS[total.unit]
        scores.append(total.natural)
        drawn.append(np.array([natural(mean) for mean in _means(samples, rng)]))
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(drawn[0] - drawn[1], [tail, 100 - tail])
    return Gap(pair.searched, pair.sets, scores[0], scores[1], float(low), float(high))


def _means(samples: Sequence[NDArray[np.float64]], rng: np.random.RandomState) -> NDArray[np.float64]:
    """Returns the means over all sets in each draw [DRAWS]; each set is drawn by itself.

    Args:
        samples: for each set (sum of units, what it is divided by) of each observation.
    """
    sums = np.zeros((DRAWS, 2))
    for sample in samples:
        count = len(sample)
        sums += rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) @ sample
    means: NDArray[np.float64] = sums[:, 0] / sums[:, 1]
    return means
