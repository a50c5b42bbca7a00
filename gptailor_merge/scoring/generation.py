"""Takes a generation of plans up the rungs, wherever they are scored, and turns what they have into outcomes.

Whoever scores a rung is told the plans that are left, and nothing of the race.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from gptailor_merge.objectives.scores import Scores, with_means
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.passes import Measured, Passes
from gptailor_merge.scoring.racing import Race, Units


@dataclass(frozen=True)
class RungResult:
    """Holds what a plan has on the batches of one rung, or of several that follow each other.

    Attributes:
        measured: the units of these rungs.
        cause: why the plan could not be scored, or None.
        seconds: time spent on the plan.
        tokens: how many tokens it was scored on.
    """

    measured: Measured
    cause: str | None
    seconds: float
    tokens: int


class RungScorer(Protocol):
    """Scores plans on some rungs at a time, in this process or elsewhere."""

    def score_rungs(self, rungs: range, plans: Sequence[Plan]) -> Sequence[RungResult]:
        """Returns what the plans have on the batches of the rungs together, in their order."""


def score_generation(
    scorer: RungScorer, passes: Passes, plans: Sequence[Plan], race: Race | None
) -> list[Outcome]:
    """Scores the plans and returns their outcomes in order.

    Args:
        passes: what the scorer measures.
        race: drops plans that cannot win before they are scored on everything; None scores all.
    """
    contestants = [_Contestant(plan, passes.nothing_measured()) for plan in plans]
    count = len(passes.rungs)
    steps = [range(count)] if race is None else [range(rung, rung + 1) for rung in range(count)]
    for rungs in steps:
        running = [contestant for contestant in contestants if contestant.runs]
        if running:
            results = scorer.score_rungs(rungs, [contestant.plan for contestant in running])
            for contestant, result in zip(running, results, strict=True):
                contestant.add(result)
        if race is not None and rungs.stop != count:
            _drop_hopeless(contestants, race, passes)
    return _outcomes(contestants, race, passes)


def _drop_hopeless(contestants: Sequence[_Contestant], race: Race, passes: Passes) -> None:
    running = [contestant for contestant in contestants if contestant.runs]
    hopeless = race.hopeless([c.units(passes, race) for c in running], passes.totals)
    for contestant, leaves in zip(running, hopeless, strict=True):
        contestant.dropped = leaves


def _outcomes(contestants: Sequence[_Contestant], race: Race | None, passes: Passes) -> list[Outcome]:
    if race is None:
        return [contestant.outcome(passes, None, None) for contestant in contestants]
    units = {n: c.units(passes, race) for n, c in enumerate(contestants) if c.cause is None}
    finished = {n: u for n, u in units.items() if not contestants[n].dropped}
    dropped = {n: u for n, u in units.items() if contestants[n].dropped}
    of_dropped = list(finished.values()), dropped, passes.totals
    estimates, means = race.estimates(*of_dropped), race.means(*of_dropped)
    return [
        c.outcome(passes, finished.get(n), estimates.get(n), means.get(n, {}))
        for n, c in enumerate(contestants)
    ]


class _Contestant:
    """A plan on its way through a generation."""

    def __init__(self, plan: Plan, measured: Measured) -> None:
        self.plan = plan
        self.dropped = False
        self.cause: str | None = None
        self._measured = measured
        self._seconds = 0.0
        self._tokens = 0

    @property
    def runs(self) -> bool:
        """Tells whether the plan is still to be scored."""
        return self.cause is None and not self.dropped

    def add(self, result: RungResult) -> None:
        """Adds what the plan has on a further rung."""
        for key, parts in result.measured.items():
            self._measured[key].extend(parts)
        self.cause = result.cause
        self._seconds += result.seconds
        self._tokens += result.tokens

    def units(self, passes: Passes, race: Race) -> Units:
        """Returns what each unit scored so far adds to the loss."""
        return race.units(lambda weights: passes.units(self._measured, weights))

    def outcome(
        self,
        passes: Passes,
        units: Units | None,
        estimate: float | None,
        means: Mapping[str, float] = MappingProxyType({}),
    ) -> Outcome:
        """Returns the scores, or the failure.

        Args:
            means: objective -> its estimate, which takes the place of the mean so far.
        """
        scores = {} if self.cause else with_means(passes.scores(self._measured), means)
        cause = self.cause or _not_finite(scores)
        if cause:
            return Outcome.failure(cause, self._seconds)
        return Outcome(scores, None, self._seconds, self._tokens, units, estimate, self._measured)


def _not_finite(scores: Scores) -> str | None:
    for objective, by_set in scores.items():
        for name, score in by_set.items():
            if not math.isfinite(score.mean):
                return f"{objective} on {name} is {score.mean}, not a finite number"
    return None
