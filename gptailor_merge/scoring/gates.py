"""Gates: bounds that a candidate must keep to, whatever it gains elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gptailor_merge.objectives.bounds import Bound
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.axis_races import GateRace, MeasureLimit
from gptailor_merge.scoring.executor import Executor, Outcome
from gptailor_merge.scoring.passes import Measured, Passes

PREFIX = "gate: "
"""Begins the names of gates' measures, beside those of the objectives."""


@dataclass(frozen=True)
class Gates:
    """Measures with bounds.

    A plan that breaks a bound beyond doubt is not scored on the rest; its scores are estimates then.

    Attributes:
        executor: scores plans on the measures.
        names: the measures' names.
        bounds: one for each of the names, in their order.
        of_base: the base model's own scores.
        measured_of_base: the units behind them.
        passes: what the executor measures.
        racing: False scores every plan on everything.
    """

    executor: Executor
    names: tuple[str, ...]
    bounds: tuple[Bound, ...]
    of_base: Scores
    measured_of_base: Measured
    passes: Passes
    racing: bool = True

    def judge(self, plans: Sequence[Plan]) -> Sequence[Outcome]:
        """Scores plans on the measures and returns the outcomes in their order."""
        return self.executor.score(plans, self._race if self.racing else None)

    @cached_property
    def _race(self) -> GateRace:
        limits = []
        for name, bound in zip(self.names, self.bounds, strict=True):
            base = Score.total(list(self.of_base[name].values()))
            limits.append(MeasureLimit(base.unit, bound.threshold(base.natural), bound.at_least is None))
        race = GateRace(0, {}, axes=self.names, limits=tuple(limits))
        base_units = race.units(lambda weights: self.passes.units(self.measured_of_base, weights))
        return replace(race, incumbents=(base_units,))

    def beyond(self, scores: Scores) -> str | None:
        """Returns a sentence about the first bound that scores break; None where they keep to all."""
        for name, bound in zip(self.names, self.bounds, strict=True):
            value, of_base = (_natural(by_name, name) for by_name in (scores, self.of_base))
            if not bound.holds(value, of_base):
                word = "at most" if bound.at_least is None else "at least"
                return f"{name} is {value:.4g}, expected {word} {bound.threshold(of_base):.4g}"
        return None


def _natural(scores: Scores, name: str) -> float:
    """Returns an objective's score over all its sets, in the units that users see."""
    return Score.total(list(scores[name].values())).natural
