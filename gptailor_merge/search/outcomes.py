"""What became of a recipe, as it is remembered."""

from __future__ import annotations

from dataclasses import dataclass

from gptailor_merge.objectives.scores import Score, Scores, Weights
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.search.candidates import Candidate, Status


def loss(scores: Scores, weights: Weights) -> float:
    """The number that is minimised: the weighted sum of the objectives' means over all units."""
    return sum(weight * Score.total(list(scores[name].values())).mean for name, weight in weights.items())


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a candidate.

    Attributes:
        beyond: the bound that it breaks, or None.
    """

    outcome: Outcome
    beyond: str | None

    @property
    def passes(self) -> bool:
        return self.outcome.cause is None and self.beyond is None


def candidate_of(
    number: int,
    digest: str,
    recipe: Recipe,
    verdict: Verdict | None,
    outcome: Outcome | None,
    weights: Weights,
    fingerprint: str,
    status: Status,
) -> Candidate:
    """What became of a proposal that was judged, scored, or both."""
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
        digest=digest,
        recipe=recipe.to_yaml(),
        status=status,
        loss=value,
        scores=scores,
        fingerprint=fingerprint,
        cause=cause,
        tokens=sum(part.tokens for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def duplicate_of(number: int, recipe: Recipe, original: Candidate) -> Candidate:
    return Candidate(
        number=number,
        digest=original.digest,
        recipe=recipe.to_yaml(),
        status=Status.DUPLICATE,
        loss=original.loss,
        scores=original.scores,
        fingerprint=original.fingerprint,
        cause=original.cause,
        original=original.number if original.original is None else original.original,
    )


def measured(number: int, made: Plan, recipe: Recipe, outcome: Outcome, fingerprint: str) -> Candidate:
    """A model on which something else was measured than the objectives; it has no loss."""
    return Candidate(
        number=number,
        digest=made.digest,
        recipe=recipe.to_yaml(),
        status=Status.PROBE,
        loss=None,
        scores=outcome.scores,
        fingerprint=fingerprint,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
    )
