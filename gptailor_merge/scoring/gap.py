"""How much better a model looks on what it was chosen by than on what it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptailor_merge.objectives.scores import UNITS, Score
from gptailor_merge.scoring.passes import Measured, Passes
from gptailor_merge.scoring.uncertainty import observations

DRAWS = 2000


COVERAGE = 0.95


@dataclass(frozen=True)
class Pair:
    """An objective that is searched on and its counterpart that is held out.

    Attributes:
        searched, held_out: names of the objectives.
        sets: names of the sets that both have.
    """

    searched: str
    held_out: str
    sets: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """Search score minus held-out score, in the units that users see, and its interval."""

    objective: str
    sets: tuple[str, ...]
    searched: float
    held_out: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """The gap itself."""
        return self.searched - self.held_out


def gap(
    pair: Pair,
    searched: tuple[Passes, Measured],
    held_out: tuple[Passes, Measured],
    seed: int,
) -> Gap:
    """The gap, with the percentile interval of the bootstrap (B. Efron, 1979) over items.

    Both samples are drawn anew, independently. Of texts sequences are drawn: their tokens are not
    independent of each other.
    """
    rng = np.random.RandomState(seed)
    found, drawn = [], []
    for (passes, measured), name in ((searched, pair.searched), (held_out, pair.held_out)):
        objective = next(one for one in passes.objectives if one.name == name)
        samples = [observations(objective, one, measured[name, one]) for one in pair.sets]
        total = Score.total([objective.score(one, np.concatenate(measured[name, one])) for one in pair.sets])
        natural = UNITS[total.unit]
        found.append(total.natural)
        drawn.append(np.array([natural(mean) for mean in _means(samples, rng)]))
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(drawn[0] - drawn[1], [tail, 100 - tail])
    of_searched, of_held_out = found
    return Gap(pair.searched, pair.sets, of_searched, of_held_out, float(low), float(high))


def _means(samples: Sequence[NDArray[np.float64]], rng: np.random.RandomState) -> NDArray[np.float64]:
    """The mean over all sets, of as many draws; each set is drawn by itself."""
    sums = np.zeros((DRAWS, 2))
    for sample in samples:
        count = len(sample)
        sums += rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) @ sample
    means: NDArray[np.float64] = sums[:, 0] / sums[:, 1]
    return means
