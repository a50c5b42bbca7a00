"""The search loop: ask for a generation, score what is new, tell, remember.

Resuming replays: the optimiser is built from its seed and asked again, and candidates that the
journal knows are answered from it. One worker therefore ends where an undisturbed run ends, and no
pickled state is stored or trusted.

A generation may be raced: a candidate that cannot be among those the optimiser keeps is dropped
before it is scored on everything. It is recorded as `dropped`, with the tokens that it was scored
on, and the optimiser is told an estimate of its loss that is never as good as what it keeps.

With gates, candidates that fail one are `gated`: not scored further, and told as the worst. With
several axes the optimiser is told all their losses, and nothing is raced.
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
from gptailor_merge.search.front import losses
from gptailor_merge.search.journal import (
    DROPPED,
    DUPLICATE,
    FAILED,
    GATED,
    PROBE,
    SCORED,
    Candidate,
    Journal,
)
from gptailor_merge.search.optimizers import create, keeps
from gptailor_merge.search.parametrization import parametrization
from gptailor_merge.search.space import Space

PROBE_SHARE = 0.25
"""The start is probed where that takes no more than this share of the budget."""
FAILED_LOSS = 1e6
"""What the optimiser is told of a candidate that failed or is out: worse than any real loss."""


class Scorer(Protocol):
    """Turns plans into outcomes, in their order; see scoring.evaluator.Evaluator."""

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]: ...


class Gate(Protocol):
    """Keeps candidates out before they are scored; see search.gates.Gates."""

    def judge(self, plans: Sequence[Plan]) -> Sequence[Outcome]:
        """Outcomes on the gates' own measures, in the order of the plans."""

    def beyond(self, scores: Scores) -> str | None:
        """Which bound these scores break, in a sentence."""


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        weights: of the objectives that are added up in the loss.
        axes: the objectives of which a front is sought; none where the loss is minimised.
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
    axes: tuple[str, ...] = ()
    max_failures: int = 16
    racing: bool | None = None

    @property
    def keep(self) -> int | None:
        """How many candidates a race leaves; None where there is none."""
        return None if self.racing is False or self.axes else keeps(self.optimizer, self.population)

    def told(self, candidate: Candidate) -> float | list[float]:
        """What the optimiser is told of a candidate."""
        if self.axes:
            failed = candidate.loss is None
            return [FAILED_LOSS] * len(self.axes) if failed else list(losses(candidate.scores, self.axes))
        return FAILED_LOSS if candidate.loss is None else candidate.loss


def loss(scores: Scores, weights: Weights) -> float:
    """The number that is minimised: the weighted sum of the objectives' means over all units."""
    return sum(weight * Score.total(list(scores[name].values())).mean for name, weight in weights.items())


def search(
    space: Space,
    scorer: Scorer,
    journal: Journal,
    settings: Settings,
    *,
    gate: Gate | None = None,
    start: Sequence[Recipe] = (),
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Candidate:
    """Propose and score `settings.budget` candidates and return the best.

    Args:
        gate: keeps candidates out; probes of other sizes are no candidates.
        start: recipes that the first generation begins with, no more than it has candidates.
        on_candidate: called for every candidate, also for those that the journal knew.

    Raises:
        SearchError: too many failures in a row, nothing scored, or a journal of another search.
    """
    run = _Run(space, scorer, journal, settings, gate, on_candidate)
    optimizer = create(
        settings.optimizer,
        parametrization(space, settings.seed),
        budget=settings.budget,
        population=settings.population,
        pareto=bool(settings.axes),
    )
    removed = _probe(space, run)
    rng = np.random.RandomState(settings.seed)
    first = first_generation(space, removed, settings.population, rng, start)
    for point in reversed(first):  # nevergrad takes the last suggestion first
        optimizer.suggest(dict(point))
    while run.asked < settings.budget:
        size = min(settings.population, settings.budget - run.asked)
        proposals = [optimizer.ask() for _ in range(size)]
        recipes = [space.decode(proposal.value) for proposal in proposals]
        for proposal, candidate in zip(proposals, run.score(recipes, keep=settings.keep), strict=True):
            _tell(optimizer, proposal, settings.told(candidate))
    best = journal.best()
    if best is None:
        counts, cause = journal.counts(), list(journal.candidates())[-1].cause
        raise SearchError(
            f"none of {counts.candidates} candidates could be scored, {counts.gated} were kept out by gates; "
            f"the last: {cause}"
        )
    return best


def _probe(space: Space, run: _Run) -> dict[int, set[int]] | None:
    """For each size the layers that cost least one by one; None where probing would cost too much."""
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


def _tell(optimizer: Any, proposal: Any, value: float | list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some optimisers warn of points that they did not propose
        optimizer.tell(proposal, value)


class _Run:
    """What the phases of a search share: the candidates so far, by number and by digest."""

    def __init__(
        self,
        space: Space,
        scorer: Scorer,
        journal: Journal,
        settings: Settings,
        gate: Gate | None,
        on_candidate: Callable[[Candidate], None],
    ) -> None:
        self.settings = settings
        self.known = {candidate.number: candidate for candidate in journal.candidates()}
        self.asked = 0
        self._space, self._gate = space, gate
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
        judged = self._judge(fresh)
        left = [made for made in fresh if made.digest not in judged or judged[made.digest].passes]
        outcomes = dict(zip((made.digest for made in left), self._race(left, keep), strict=True))
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
                    candidate = _candidate(
                        number,
                        digest,
                        recipe,
                        judged.get(digest),
                        outcomes.get(digest),
                        self.settings,
                        status,
                    )
                new.append(candidate)
            self._by_digest.setdefault(digest, candidate)
            finished.append(candidate)
        self._journal.record(new)
        self.asked += len(finished)
        for candidate in finished:
            self._on_candidate(candidate)
            self._count_failure(candidate)
        return finished

    def _judge(self, plans: Sequence[Plan]) -> dict[str, _Verdict]:
        """By digest what the gate says of those that are candidates."""
        candidates = [made for made in plans if len(made.slots) in self._space.sizes]
        if self._gate is None or not candidates:
            return {}
        outcomes = self._gate.judge(candidates)
        return {
            made.digest: _Verdict(outcome, None if outcome.cause else self._gate.beyond(outcome.scores))
            for made, outcome in zip(candidates, outcomes, strict=True)
        }

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
        self._failures = self._failures + 1 if candidate.failed else 0
        if self._failures >= self.settings.max_failures:
            raise SearchError(
                f"{self._failures} candidates in a row failed; the last: {candidate.cause}\n"
                f"What was scored before is kept in {self._journal.file}."
            )


@dataclass(frozen=True)
class _Verdict:
    """What the gate says of a candidate.

    Attributes:
        beyond: the bound that it breaks, or None.
    """

    outcome: Outcome
    beyond: str | None

    @property
    def passes(self) -> bool:
        return self.outcome.cause is None and self.beyond is None


def _candidate(
    number: int,
    digest: str,
    recipe: Recipe,
    verdict: _Verdict | None,
    outcome: Outcome | None,
    settings: Settings,
    status: str,
) -> Candidate:
    """What became of a proposal that was judged, scored, or both."""
    parts = [verdict.outcome] if verdict is not None else []
    parts += [outcome] if outcome is not None else []
    scores = {name: by_set for part in parts for name, by_set in part.scores.items()}
    cause = next((part.cause for part in parts if part.cause is not None), None)
    value: float | None = None
    if cause is not None:
        status, scores = FAILED, {}
    elif outcome is None:
        assert verdict is not None
        status, cause = GATED, verdict.beyond
    elif outcome.estimate is not None:
        status, value = DROPPED, outcome.estimate
    else:
        value = loss(scores, settings.weights)
    return Candidate(
        number=number,
        digest=digest,
        recipe=recipe.to_yaml(),
        status=status,
        loss=value,
        scores=scores,
        fingerprint=settings.fingerprint,
        cause=cause,
        tokens=sum(part.tokens for part in parts),
        seconds=sum(part.seconds for part in parts),
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
