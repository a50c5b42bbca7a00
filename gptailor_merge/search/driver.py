"""The search loop: ask for a generation, score what is new, tell, remember.

Resuming replays: the optimiser is built from its seed and asked again, and candidates that the
journal knows are answered from it. One worker therefore ends where an undisturbed run ends, and no
pickled state is stored or trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gptailor_merge.errors import SearchError
from gptailor_merge.recipe.operations import Plan, plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.evaluator import Outcome, Scores
from gptailor_merge.scoring.objectives import Score
from gptailor_merge.search.journal import Candidate, Journal
from gptailor_merge.search.optimizers import create
from gptailor_merge.search.space import Space

FAILED_LOSS = 1e6
"""What the optimiser is told of a candidate that failed: worse than any real loss."""


class Scorer(Protocol):
    """Turns plans into outcomes, in their order; see scoring.evaluator.Evaluator."""

    def score(self, plans: Sequence[Plan]) -> Iterator[Outcome]: ...


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        weights: objective name -> its weight in the loss.
        fingerprint: of the objectives; stored scores count only under the same one.
        max_failures: so many failures in a row stop the search.
    """

    optimizer: str
    budget: int
    population: int
    seed: int
    weights: Mapping[str, float]
    fingerprint: str
    max_failures: int = 16


def loss(scores: Scores, weights: Mapping[str, float]) -> float:
    """The number that is minimised: the weighted sum of the objectives' means over all tokens."""
    return sum(weights[name] * Score.total(list(by_set.values())).mean for name, by_set in scores.items())


def search(
    space: Space,
    scorer: Scorer,
    journal: Journal,
    settings: Settings,
    *,
    starts: Sequence[Recipe] = (),
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Candidate:
    """Propose and score `settings.budget` candidates and return the best.

    Args:
        starts: recipes of the first generation; the rest of it is random.
        on_candidate: called for every candidate, also for those that the journal knew.

    Raises:
        SearchError: too many failures in a row, nothing scored, or a journal of another search.
    """
    parametrization = space.parametrization(settings.seed)
    optimizer = create(
        settings.optimizer, parametrization, budget=settings.budget, population=settings.population
    )
    first = [space.encode(recipe) for recipe in starts]
    rng = np.random.RandomState(settings.seed)
    first += [space.random(rng) for _ in range(settings.population - len(first))]
    for point in reversed(first):  # nevergrad takes the last suggestion first
        optimizer.suggest(dict(point))

    known = {candidate.number: candidate for candidate in journal.candidates()}
    by_digest: dict[str, Candidate] = {}
    failures = 0
    asked = 0
    while asked < settings.budget:
        size = min(settings.population, settings.budget - asked)
        proposals = [optimizer.ask() for _ in range(size)]
        recipes = [space.decode(proposal.value) for proposal in proposals]
        numbered = list(enumerate(recipes, start=asked))
        finished = _finish(numbered, known, by_digest, scorer, journal, settings)
        for proposal, candidate in zip(proposals, finished, strict=True):
            on_candidate(candidate)
            failed = candidate.loss is None
            failures = failures + 1 if failed else 0
            if failures >= settings.max_failures:
                raise SearchError(
                    f"{failures} candidates in a row failed; the last: {candidate.cause}\n"
                    f"What was scored before is kept in {journal.file}."
                )
            _tell(optimizer, proposal, FAILED_LOSS if candidate.loss is None else candidate.loss)
        asked += size
    best = journal.best()
    if best is None:
        raise SearchError("no candidate could be scored; gptailor show RUN tells the causes")
    return best


def _tell(optimizer: Any, proposal: Any, value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some optimisers warn of points that they did not propose
        optimizer.tell(proposal, value)


def _finish(
    numbered: Sequence[tuple[int, Recipe]],
    known: Mapping[int, Candidate],
    by_digest: dict[str, Candidate],
    scorer: Scorer,
    journal: Journal,
    settings: Settings,
) -> Iterator[Candidate]:
    """The generation's candidates in order: from the journal, as duplicates, or freshly scored.

    A candidate is yielded, and recorded, as soon as it is finished.
    """
    plans = {number: plan(recipe) for number, recipe in numbered}
    first_of: dict[str, int] = {}
    for number, resolved in plans.items():
        first_of.setdefault(resolved.digest, number)
    fresh = [
        number
        for number, resolved in plans.items()
        if number not in known and resolved.digest not in by_digest and first_of[resolved.digest] == number
    ]
    outcomes = scorer.score([plans[number] for number in fresh])
    for number, recipe in numbered:
        digest = plans[number].digest
        if number in known:
            candidate = known[number]
            if candidate.digest != digest or candidate.fingerprint != settings.fingerprint:
                raise SearchError(
                    f"{journal.file}: candidate {number} is {candidate.digest}, this search proposes "
                    f"{digest}; the config, the data or the versions of the libraries have changed"
                )
        else:
            if digest in by_digest:
                candidate = _duplicate(number, recipe, by_digest[digest])
            else:
                candidate = _scored(number, digest, recipe, next(outcomes), settings)
            journal.record(candidate)
        by_digest.setdefault(digest, candidate)
        yield candidate


def _scored(number: int, digest: str, recipe: Recipe, outcome: Outcome, settings: Settings) -> Candidate:
    failed = outcome.cause is not None
    return Candidate(
        number=number,
        digest=digest,
        recipe=recipe.to_yaml(),
        status="failed" if failed else "scored",
        loss=None if failed else loss(outcome.scores, settings.weights),
        scores=outcome.scores,
        fingerprint=settings.fingerprint,
        cause=outcome.cause,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
    )


def _duplicate(number: int, recipe: Recipe, original: Candidate) -> Candidate:
    return Candidate(
        number=number,
        digest=original.digest,
        recipe=recipe.to_yaml(),
        status="duplicate",
        loss=original.loss,
        scores=original.scores,
        fingerprint=original.fingerprint,
        cause=original.cause,
        original=original.number if original.original is None else original.original,
    )
