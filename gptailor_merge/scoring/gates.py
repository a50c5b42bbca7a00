"""Gates: bounds that a candidate must keep to, whatever it gains elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptailor_merge.objectives.bounds import Bound
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.evaluator import Evaluator, Outcome

PREFIX = "gate: "
"""Begins the names of gates' measures, beside those of the objectives."""


@dataclass(frozen=True)
class Gates:
    """Measures with bounds.

    Attributes:
        evaluator: scores plans on the measures.
        bounds: one for each of the evaluator's objectives, in their order.
        of_base: the base model's own scores.
    """

    evaluator: Evaluator
    bounds: tuple[Bound, ...]
    of_base: Scores

    def judge(self, plans: Sequence[Plan]) -> Sequence[Outcome]:
        """Scores plans on the measures and returns the outcomes in their order."""
        return self.evaluator.score(plans)

    def beyond(self, scores: Scores) -> str | None:
        """Returns a sentence about the first bound that scores break; None where they keep to all."""
        for objective, bound in zip(self.evaluator.passes.objectives, self.bounds, strict=True):
            value, of_base = (_natural(by_name, objective.name) for by_name in (scores, self.of_base))
            if not bound.holds(value, of_base):
                word = "at most" if bound.at_least is None else "at least"
                return f"{objective.name} is {value:.4g}, expected {word} {bound.threshold(of_base):.4g}"
        return None


def _natural(scores: Scores, name: str) -> float:
    """Returns an objective's score over all its sets, in the units that users see."""
    return Score.total(list(scores[name].values())).natural
