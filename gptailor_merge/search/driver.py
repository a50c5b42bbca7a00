"""The search loop: ask for a generation, score what is new, tell, remember.

Resuming replays: the optimiser is built from its seed and asked again, and candidates that the
journal knows are answered from it. One worker therefore ends where an undisturbed run ends, and no
pickled state is stored or trusted.

A generation may be raced: a candidate that cannot be among those the optimiser keeps is dropped
before it is scored on everything. It is recorded as `dropped`, with the tokens that it was scored
on, and the optimiser is told an estimate of its loss that is never as good as what it keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gptailor_merge.errors import SearchError
from gptailor_merge.recipe.operations import Plan, plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.evaluator import Outcome
from gptailor_merge.scoring.objectives import Score, Scores, Weights
from gptailor_merge.scoring.racing import Race, Units
from gptailor_merge.search import baselines
from gptailor_merge.search.baselines import first_generation
from gptailor_merge.search.journal import (
    DROPPED,
    DUPLICATE,
    FAILED,
    PROBE,
    SCORED,
    Candidate,
    Journal,
)
from gptailor_merge.search.optimizers import create, keeps
from gptailor_merge.search.space import Space

PROBE_SHARE = 0.25
"""The start is probed where that takes no more than this share of the budget."""
FAILED_LOSS = 1e6
"""What the optimiser is told of a candidate that failed: worse than any real loss."""


class Scorer(Protocol):
    """Turns plans into outcomes, in their order; see scoring.evaluator.Evaluator."""

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]: ...


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        fingerprint: of the objectives; stored scores count only under the same one.
        max_failures: so many failures in a row stop the search.
        racing: whether generations are raced; None where it is known what the optimiser keeps.
    """

    optimizer: str
    budget: int
    population: int
    seed: int
    weights: Weights
    fingerprint: str
    max_failures: int = 16
    racing: bool | None = None


def loss(scores: Scores, weights: Weights) -> float:
    """The number that is minimised: the weighted sum of the objectives' means over all tokens."""
    return sum(weights[name] * Score.total(list(by_set.values())).mean for name, by_set in scores.items())


def search(
    space: Space,
    scorer: Scorer,
    journal: Journal,
    settings: Settings,
    *,
    start: Sequence[Recipe] = (),
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Candidate:
    """Propose and score `settings.budget` candidates and return the best.

    Args:
        start: recipes that the first generation begins with, no more than it has candidates.
        on_candidate: called for every candidate, also for those that the journal knew.

    Raises:
        SearchError: too many failures in a row, nothing scored, or a journal of another search.
    """
    run = _Run(scorer, journal, settings, on_candidate)
    keep = keeps(settings.optimizer, settings.population) if settings.racing is not False else None
    parametrization = space.parametrization(settings.seed)
    optimizer = create(
        settings.optimizer, parametrization, budget=settings.budget, population=settings.population
    )
    removed = _probe(space, run)
    rng = np.random.RandomState(settings.seed)
    first = first_generation(space, removed, settings.population, rng, start)
    for point in reversed(first):  # nevergrad takes the last suggestion first
        optimizer.suggest(dict(point))
    while run.asked < settings.budget:
        size = min(settings.population, settings.budget - run.asked)
        proposals = [optimizer.ask() for _ in range(size)]
        finished = run.score([space.decode(proposal.value) for proposal in proposals], keep=keep)
        for proposal, candidate in zip(proposals, finished, strict=True):
            _tell(optimizer, proposal, FAILED_LOSS if candidate.loss is None else candidate.loss)
    best = journal.best()
    if best is None:
        raise SearchError("no candidate could be scored; gptailor show RUN tells the causes")
    return best


def _probe(space: Space, run: _Run) -> set[int] | None:
    """The layers whose removal costs least, one by one; None where probing would cost too much."""
    recipes = baselines.probes(space)
    affordable = len(recipes) <= run.settings.budget * PROBE_SHARE
    if 0 in run.known:  # a resumed run does as it did, also under a larger budget
        affordable = run.known[0].digest == plan(recipes[0][1]).digest
    if not affordable:
        return None
    finished = run.score([recipe for _, recipe in recipes], status=PROBE)
    losses = {
        layer: candidate.loss
        for (layer, _), candidate in zip(recipes, finished, strict=True)
        if candidate.loss is not None
    }
    return baselines.one_shot(space, losses)


def _tell(optimizer: Any, proposal: Any, value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some optimisers warn of points that they did not propose
        optimizer.tell(proposal, value)


class _Run:
    """What the phases of a search share: the candidates so far, by number and by digest."""

    def __init__(
        self,
        scorer: Scorer,
        journal: Journal,
        settings: Settings,
        on_candidate: Callable[[Candidate], None],
    ) -> None:
        self.settings = settings
        self.known = {candidate.number: candidate for candidate in journal.candidates()}
        self.asked = 0
        self._scorer, self._journal, self._on_candidate = scorer, journal, on_candidate
        self._by_digest: dict[str, Candidate] = {}
        self._units: dict[str, Units] = {}
        self._failures = 0

    def score(
        self, recipes: Sequence[Recipe], *, status: str = SCORED, keep: int | None = None
    ) -> list[Candidate]:
        """The next candidates, in order, recorded in one transaction.

        They come from the journal, or are duplicates, or are freshly scored.

        Args:
            keep: how many of the best the optimiser keeps; None scores all to the end.

        Raises:
            SearchError: too many failures in a row, or a journal of another search.
        """
        numbered = list(enumerate(recipes, start=self.asked))
        plans = {number: plan(recipe) for number, recipe in numbered}
        first_of: dict[str, int] = {}
        for number, resolved in plans.items():
            first_of.setdefault(resolved.digest, number)
        fresh = [
            resolved
            for number, resolved in plans.items()
            if number not in self.known
            and resolved.digest not in self._by_digest
            and first_of[resolved.digest] == number
        ]
        outcomes = dict(zip((made.digest for made in fresh), self._race(fresh, keep), strict=True))
        finished, new = [], []
        for number, recipe in numbered:
            digest = plans[number].digest
            candidate = self.known.get(number)
            if candidate is not None:
                self._check(candidate, digest)
            else:
                original = self._by_digest.get(digest)
                if original is not None:
                    candidate = _duplicate(number, recipe, original)
                else:
                    candidate = _scored(number, digest, recipe, outcomes[digest], self.settings, status)
                new.append(candidate)
            self._by_digest.setdefault(digest, candidate)
            finished.append(candidate)
        self._journal.record(new)
        self.asked += len(finished)
        for candidate in finished:
            self._on_candidate(candidate)
            self._count_failure(candidate)
        return finished

    def _race(self, plans: Sequence[Plan], keep: int | None) -> Sequence[Outcome]:
        if keep is None or not plans:
            return self._scorer.score(plans)
        return self._run_race(plans, Race(keep, self.settings.weights, tuple(self._incumbents(keep))))

    def _run_race(self, plans: Sequence[Plan], race: Race) -> Sequence[Outcome]:
        outcomes = self._scorer.score(plans, race)
        for made, outcome in zip(plans, outcomes, strict=True):
            if outcome.units is not None:
                self._units[made.digest] = outcome.units
        return outcomes

    def _incumbents(self, keep: int) -> list[Units]:
        """The units of the best so far; after a resumption they are scored again."""
        finished = [c for c in self._by_digest.values() if c.status == SCORED and c.loss is not None]
        best = sorted(finished, key=lambda c: (c.loss, c.number))[:keep]
        unknown = [plan(c.parsed) for c in best if c.digest not in self._units]
        if unknown:
            self._run_race(unknown, Race(len(unknown), self.settings.weights))
        self._units = {c.digest: self._units[c.digest] for c in best if c.digest in self._units}
        return list(self._units.values())

    def _check(self, candidate: Candidate, digest: str) -> None:
        if candidate.digest != digest or candidate.fingerprint != self.settings.fingerprint:
            raise SearchError(
                f"{self._journal.file}: candidate {candidate.number} is {candidate.digest}, this search "
                f"proposes {digest}; the config, the data or the versions of the libraries have changed"
            )

    def _count_failure(self, candidate: Candidate) -> None:
        self._failures = self._failures + 1 if candidate.loss is None else 0
        if self._failures >= self.settings.max_failures:
            raise SearchError(
                f"{self._failures} candidates in a row failed; the last: {candidate.cause}\n"
                f"What was scored before is kept in {self._journal.file}."
            )


def _scored(
    number: int, digest: str, recipe: Recipe, outcome: Outcome, settings: Settings, status: str
) -> Candidate:
    value: float | None
    if outcome.cause is not None:
        status, value = FAILED, None
    elif outcome.estimate is not None:
        status, value = DROPPED, outcome.estimate
    else:
        value = loss(outcome.scores, settings.weights)
    return Candidate(
        number=number,
        digest=digest,
        recipe=recipe.to_yaml(),
        status=status,
        loss=value,
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
        status=DUPLICATE,
        loss=original.loss,
        scores=original.scores,
        fingerprint=original.fingerprint,
        cause=original.cause,
        original=original.number if original.original is None else original.original,
    )
