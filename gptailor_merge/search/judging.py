"""Judges new plans: a gate keeps bad ones out, and the others are scored, at times in a race.

In a race a plan that cannot be among those the optimiser keeps leaves before it is scored on everything. It
becomes a `dropped` candidate, whose loss is an estimate that is never as good as what is kept. Plans that
break a gate's bound are not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from gptailor_merge.objectives.scores import Scores, Weights
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.axis_races import DOMINATORS, FrontRace
from gptailor_merge.scoring.executor import Executor, Outcome
from gptailor_merge.scoring.racing import Race, Units
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.outcomes import Judgement

MOST_OF_FRONT = 64
"""Most candidates of the front that new ones are raced against; their units stay in memory."""


Incumbents = Callable[[int], Sequence[Candidate]]
"""Returns the best candidates so far, this many at most."""


class Gate(Protocol):
    """Keeps candidates out before they are scored; see scoring.gates.Gates."""

    def judge(self, plans: Sequence[Plan]) -> Sequence[Outcome]:
        """Returns outcomes on the gate's own measures, in the order of the plans."""

    def beyond(self, scores: Scores) -> str | None:
        """Returns the bound that these scores break, in a sentence."""


class Judge:
    """Judges the plans of a generation that are new."""

    def __init__(
        self,
        executor: Executor,
        gate: Gate | None,
        sizes: Collection[int],
        weights: Weights,
        axes: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            sizes: the target sizes; plans of other sizes are probes, which no gate judges.
            weights: of the objectives in the loss.
            axes: the objectives of which a front is sought; none where the loss is minimised.
        """
        self._executor, self._gate = executor, gate
        self._sizes, self._weights, self._axes = sizes, weights, axes
        self._units: dict[str, Units] = {}

    def judge(
        self, plans: Sequence[Plan], keep: int | Race | None, incumbents: Incumbents
    ) -> dict[str, Judgement]:
        """Returns a judgement of each plan, by digest.

        Args:
            plans: with distinct digests.
            keep: the number of best candidates to race for, incumbents included, or the race itself; None
                scores every plan to the end. A front is raced for whatever the number is.
        """
        judged = {plan.digest: Judgement() for plan in plans} | self._verdicts(plans)
        passing = [plan for plan in plans if judged[plan.digest].passes]
        for plan, outcome in zip(passing, self._outcomes(passing, keep, incumbents), strict=True):
            judged[plan.digest] = replace(judged[plan.digest], outcome=outcome)
        return judged

    def _verdicts(self, plans: Sequence[Plan]) -> dict[str, Judgement]:
        """Returns the gate's verdicts on the plans of a target size, by digest."""
        gated = [plan for plan in plans if len(plan.slots) in self._sizes]
        if self._gate is None or not gated:
            return {}
        return {
            plan.digest: verdict for plan, verdict in zip(gated, verdicts(self._gate, gated), strict=True)
        }

    def _outcomes(
        self, plans: Sequence[Plan], keep: int | Race | None, incumbents: Incumbents
    ) -> Sequence[Outcome]:
        if not plans:
            return []
        if keep is None:
            return self._executor.score(plans)
        if isinstance(keep, Race):
            return self._raced(plans, keep)
        units = self._units_of(incumbents(MOST_OF_FRONT if self._axes else keep))
        return self._raced(plans, self._race(DOMINATORS if self._axes else keep, tuple(units)))

    def _race(self, keep: int, incumbents: tuple[Units, ...] = ()) -> Race:
        if self._axes:
            return FrontRace(keep, self._weights, incumbents, axes=self._axes)
        return Race(keep, self._weights, incumbents)

    def _raced(self, plans: Sequence[Plan], race: Race) -> Sequence[Outcome]:
        outcomes = self._executor.score(plans, race)
        for plan, outcome in zip(plans, outcomes, strict=True):
            if outcome.units is not None:
                self._units[plan.digest] = outcome.units
        return outcomes

    def _units_of(self, incumbents: Sequence[Candidate]) -> list[Units]:
        """Returns the units of incumbents; after a resumption they are scored again."""
        unknown = [candidate.plan for candidate in incumbents if candidate.digest not in self._units]
        if unknown:
            self._raced(unknown, self._race(len(unknown)))
        # The units of all others are forgotten: they are many numbers, and no race needs them.
        digests = [candidate.digest for candidate in incumbents if candidate.digest in self._units]
        self._units = {digest: self._units[digest] for digest in digests}
        return list(self._units.values())


def verdicts(gate: Gate, plans: Sequence[Plan]) -> list[Judgement]:
    """Returns the gate's verdict on each plan, in their order."""
    return [
        Judgement(outcome, None if outcome.cause else gate.beyond(outcome.scores))
        for outcome in gate.judge(plans)
    ]
