"""Outcomes become candidates: what is remembered of a plan that was judged, scored or measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptailor_merge.documents import write_yaml_fast
from gptailor_merge.objectives.scores import Score, Scores, Weights
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.settings import SearchSettings


def loss(scores: Scores, weights: Weights) -> float:
    """Returns what is minimised: the weighted sum of the objectives' means over all units."""
    return sum(weight * Score.total(list(scores[name].values())).mean for name, weight in weights.items())


@dataclass(frozen=True)
class Judgement:
    """The gate's verdict on a plan, and the plan's outcome.

    Attributes:
        gate: scores on the gate's own measures; None where no gate looked at the plan.
        beyond: the bound that they break, in a sentence, or None.
        outcome: scores on the objectives; None where the gate is against the plan, or it is not scored yet.
    """

    gate: Outcome | None = None
    beyond: str | None = None
    outcome: Outcome | None = None

    @property
    def passes(self) -> bool:
        """True where no gate is against the plan: it could be measured and breaks no bound."""
        return self.beyond is None and (self.gate is None or self.gate.cause is None)


def candidate_of(
    number: int,
    plan: Plan,
    recipe: Recipe,
    judgement: Judgement,
    settings: SearchSettings,
    status: Status,
) -> Candidate:
    """Returns the candidate that remembers a plan that was judged by a gate, scored, or both.

    Args:
        recipe: the plan, written down.
        status: what it is where nothing went wrong.
    """
    outcome = judgement.outcome
    parts = [part for part in (judgement.gate, outcome) if part is not None]
    scores = {name: by_set for part in parts for name, by_set in part.scores.items()}
    cause = next((part.cause for part in parts if part.cause is not None), None)
    value: float | None = None
    if cause is not None:
        status, scores = Status.FAILED, {}
    elif outcome is None:
        status, cause = Status.GATED, judgement.beyond
    elif outcome.estimate is not None:
        value = outcome.estimate
        status = Status.PROBE if status == Status.PROBE else Status.DROPPED
    else:
        value = loss(scores, settings.weights)
    return Candidate(
        number=number,
        digest=plan.digest,
        recipe=write_yaml_fast(recipe.to_mapping()),
        status=status,
        loss=value,
        scores=scores,
        fingerprint=settings.fingerprint,
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
        recipe=write_yaml_fast(recipe.to_mapping()),
        status=Status.PROBE,
        loss=None,
        scores=outcome.scores,
        fingerprint=fingerprint,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        resolved=plan,
    )
