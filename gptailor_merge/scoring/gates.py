"""Bounds that a candidate must keep to, whatever it gains elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptailor_merge.objectives.bounds import Bound
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.evaluator import Evaluator, Outcome

PREFIX = "gate: "
"""Of the names of a gate's measures, beside those of the objectives."""


@dataclass(frozen=True)
class Gates:
    """Measures with bounds.

    Attributes:
        evaluator: of the measures, in the order of the bounds.
        of_base: the base model's own scores.
    """

    evaluator: Evaluator
    bounds: tuple[Bound, ...]
    of_base: Scores

    def judge(self, plans: Sequence[Plan]) -> Sequence[Outcome]:
        """Scores on the measures, in the order of the plans."""
        return self.evaluator.score(plans)

    def beyond(self, scores: Scores) -> str | None:
        """The first bound that scores break, in a sentence."""
        for objective, bound in zip(self.evaluator.passes.objectives, self.bounds, strict=True):
            value, of_base = (_natural(found, objective.name) for found in (scores, self.of_base))
            if not bound.holds(value, of_base):
                word = "at most" if bound.at_least is None else "at least"
                return f"{objective.name} is {value:.4g}, expected {word} {bound.threshold(of_base):.4g}"
        return None


def _natural(scores: Scores, name: str) -> float:
    return Score.total(list(scores[name].values())).natural
