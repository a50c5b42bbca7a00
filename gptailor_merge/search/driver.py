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
from gptailor_merge.objectives.scores import Scores, Weights
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.hidden import HiddenStates
from gptailor_merge.scoring.racing import Race, Units
from gptailor_merge.search.baselines.one_shot import OneShot
from gptailor_merge.search.baselines.problem import Baseline, Problem
from gptailor_merge.search.baselines.registry import STARTING_GENERATIONS
from gptailor_merge.search.baselines.subject import Subject, base_of
from gptailor_merge.search.candidates import Candidate, Log, Status
from gptailor_merge.search.first_generation import first_generation
from gptailor_merge.search.front import losses
from gptailor_merge.search.optimizers import create, keeps
from gptailor_merge.search.outcomes import Verdict, candidate_of, duplicate_of, measured
from gptailor_merge.search.parametrization import parametrization
from gptailor_merge.space.space import Space

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


def search(
    space: Space,
    scorer: Scorer,
    journal: Log,
    settings: Settings,
    *,
    gate: Gate | None = None,
    start: Sequence[Recipe] = (),
    warm: Sequence[Baseline] | None = None,
    hidden: HiddenStates | None = None,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Candidate:
    """Propose and score `settings.budget` candidates and return the best.

    Args:
        gate: keeps candidates out; probes of other sizes are no candidates.
        start: recipes that the first generation begins with, no more than it has candidates.
        warm: methods whose recipes come next; by default layers are probed where that is affordable.
        hidden: for methods that look at hidden states.
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
    found = _warm_start(space, run, warm, hidden)
    rng = np.random.RandomState(settings.seed)
    first = first_generation(space, found, settings.population, rng, start)
    for point in reversed(first):  # nevergrad takes the last suggestion first
        optimizer.suggest(dict(point))
    while run.asked < settings.budget:
        size = min(settings.population, settings.budget - run.asked)
        proposals = [optimizer.ask() for _ in range(size)]
        recipes = [space.decode(proposal.value) for proposal in proposals]
        for proposal, candidate in zip(proposals, run.score(recipes, keep=settings.keep), strict=True):
            _tell(optimizer, proposal, settings.told(candidate))
    return _best(journal)


def prune(
    space: Space,
    scorer: Scorer,
    journal: Log,
    settings: Settings,
    method: Baseline,
    *,
    given: Subject | None = None,
    hidden: HiddenStates | None = None,
    gate: Gate | None = None,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Candidate:
    """Do what a baseline does instead of a search, score what it comes to, and return the best.

    Args:
        given: the model that is pruned; see Problem.

    Raises:
        SearchError, ConfigError: see Baseline.find and `search`.
    """
    run = _Run(space, scorer, journal, settings, gate, on_candidate)
    made = method.find(_problem(space, run, settings.budget, given, hidden))
    left = [recipe for recipe in made if not run.has_scored(recipe)]
    if left:
        run.score(left)
    return _best(journal)


def verdicts(gate: Gate, plans: Sequence[Plan]) -> list[Verdict]:
    """What the gate says of each plan, in their order."""
    return [
        Verdict(outcome, None if outcome.cause else gate.beyond(outcome.scores))
        for outcome in gate.judge(plans)
    ]


def _best(journal: Log) -> Candidate:
    best = journal.best()
    if best is None:
        counts, cause = journal.counts(), list(journal.candidates())[-1].cause
        raise SearchError(
            f"none of {counts.candidates} candidates could be scored, {counts.gated} were kept out by gates; "
            f"the last: {cause}"
        )
    return best


def _problem(
    space: Space, run: _Run, budget: int, given: Subject | None, hidden: HiddenStates | None
) -> Problem:
    settings = run.settings
    return Problem(
        space=space,
        run=run,
        base=base_of(space),
        budget=budget,
        seed=settings.seed,
        weights=settings.weights,
        racing=settings.racing is not False and not settings.axes,
        given=given,
        hidden=hidden,
    )


def _warm_start(
    space: Space, run: _Run, warm: Sequence[Baseline] | None, hidden: HiddenStates | None
) -> list[Recipe]:
    """What the methods come to; without any that are named, the probes, where they are affordable."""
    # Not of the budget, which may grow when a run is resumed.
    problem = _problem(space, run, STARTING_GENERATIONS * run.settings.population, None, hidden)
    if warm is None:
        probes = OneShot().probes(space, problem.base)
        affordable = len(probes) <= run.settings.budget * PROBE_SHARE
        if 0 in run.known:  # a resumed run does as it did, also under a larger budget
            affordable = run.known[0].digest == plan(probes[0]).digest
        warm = [OneShot()] if affordable else []
    made = [recipe for method in warm for recipe in method.find(problem)]
    return list({plan(recipe).digest: recipe for recipe in made}.values())


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
        journal: Log,
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
        self, recipes: Sequence[Recipe], *, status: Status = Status.SCORED, keep: int | Race | None = None
    ) -> list[Candidate]:
        """The next candidates, in order, recorded in one transaction.

        They come from the journal, or are duplicates, or are freshly scored.

        Args:
            keep: how many of the best go on, or the race that tells; None scores all to the end.

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
                    candidate = duplicate_of(number, recipe, original)
                else:
                    candidate = candidate_of(
                        number,
                        digest,
                        recipe,
                        judged.get(digest),
                        outcomes.get(digest),
                        self.settings.weights,
                        self.settings.fingerprint,
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

    def measure(self, recipe: Recipe, take: Callable[[Plan], Outcome]) -> Candidate:
        """The next candidate: something else than the objectives is measured on it.

        Raises:
            SearchError: a journal of another search.
        """
        number, made = self.asked, plan(recipe)
        candidate = self.known.get(number)
        if candidate is not None:
            self._check(candidate, made.digest)
        else:
            candidate = measured(number, made, recipe, take(made), self.settings.fingerprint)
            self._journal.record([candidate])
        self.asked += 1
        self._on_candidate(candidate)
        return candidate

    def original(self, digest: str) -> Candidate | None:
        """The first candidate of a digest that was scored."""
        return self._by_digest.get(digest)

    def has_scored(self, recipe: Recipe) -> bool:
        """Whether a recipe has been a candidate, no probe, that was scored on everything."""
        known = self.original(plan(recipe).digest)
        return known is not None and known.status == Status.SCORED

    def _judge(self, plans: Sequence[Plan]) -> dict[str, Verdict]:
        """By digest what the gate says of those that are candidates."""
        candidates = [made for made in plans if len(made.slots) in self._space.sizes]
        if self._gate is None or not candidates:
            return {}
        judged = verdicts(self._gate, candidates)
        return {made.digest: verdict for made, verdict in zip(candidates, judged, strict=True)}

    def _race(self, plans: Sequence[Plan], keep: int | Race | None) -> Sequence[Outcome]:
        if keep is None or not plans:
            return self._scorer.score(plans)
        if isinstance(keep, Race):
            return self._run_race(plans, keep)
        return self._run_race(plans, Race(keep, self.settings.weights, tuple(self._incumbents(keep))))

    def _run_race(self, plans: Sequence[Plan], race: Race) -> Sequence[Outcome]:
        outcomes = self._scorer.score(plans, race)
        for made, outcome in zip(plans, outcomes, strict=True):
            if outcome.units is not None:
                self._units[made.digest] = outcome.units
        return outcomes

    def _incumbents(self, keep: int) -> list[Units]:
        """The units of the best so far; after a resumption they are scored again."""
        finished = [c for c in self._by_digest.values() if c.status == Status.SCORED and c.loss is not None]
        best = sorted(finished, key=lambda c: (c.loss, c.number))[:keep]
        unknown = [c.plan for c in best if c.digest not in self._units]
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
