"""Outcomes become candidates: what is remembered of a plan that was judged, scored or measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptailor_merge.objectives.scores import Score, Scores, Weights
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.search.candidates import Candidate, Status


def loss(scores: Scores, weights: Weights) -> float:
    """Returns what is minimised: the weighted sum of the objectives' means over all units."""
    return sum(weight * Score.total(list(scores[name].values())).mean for name, weight in weights.items())


@dataclass(frozen=True)
class GateVerdict:
    """The gate's judgement of a plan.

    Attributes:
        outcome: scores on the gate's own measures.
        beyond: the bound that they break, in a sentence, or None.
    """

    outcome: Outcome
    beyond: str | None

    @property
    def passes(self) -> bool:
        """True where the plan could be measured and breaks no bound."""
        return self.outcome.cause is None and self.beyond is None


def candidate_of(
    number: int,
    plan: Plan,
    recipe: Recipe,
    verdict: GateVerdict | None,
    outcome: Outcome | None,
    weights: Weights,
    fingerprint: str,
    status: Status,
) -> Candidate:
    """Returns the candidate that remembers a plan that was judged by a gate, scored, or both.

    Args:
        recipe: the plan, written down.
        outcome: None where the gate's verdict is against it.
        status: what it is where nothing went wrong.
    """
    parts = [verdict.outcome] if verdict is not None else []
    parts += [outcome] if outcome is not None else []
    scores = {name: by_set for part in parts for name, by_set in part.scores.items()}
    cause = next((part.cause for part in parts if part.cause is not None), None)
    value: float | None = None
    if cause is not None:
        status, scores = Status.FAILED, {}
    elif outcome is None:
        assert verdict is not None
        status, cause = Status.GATED, verdict.beyond
    elif outcome.estimate is not None:
        status, value = Status.DROPPED, outcome.estimate
    else:
        value = loss(scores, weights)
    return Candidate(
        number=number,
        digest=plan.digest,
        recipe=recipe.to_yaml(),
        status=status,
        loss=value,
        scores=scores,
        fingerprint=fingerprint,
        cause=cause,
        tokens=sum(part.tokens for part in parts),
        seconds=sum(part.seconds for part in parts),
        resolved=plan,
    )


def duplicate_of(number: int, original: Candidate) -> Candidate:
    """Returns a candidate with the plan and the scores of an earlier one, for which nothing was computed."""
    return replace(
        original,
        number=number,
        status=Status.DUPLICATE,
        original=original.number if original.original is None else original.original,
        tokens=0,
        seconds=0.0,
    )


def measured(number: int, plan: Plan, recipe: Recipe, outcome: Outcome, fingerprint: str) -> Candidate:
    """Returns the candidate that remembers a plan on which something else was measured; it has no loss."""
    return Candidate(
        number=number,
        digest=plan.digest,
        recipe=recipe.to_yaml(),
        status=Status.PROBE,
        loss=None,
        scores=outcome.scores,
        fingerprint=fingerprint,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        resolved=plan,
    )
