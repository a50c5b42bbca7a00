"""What a baseline is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gptailor_merge.errors import SearchError
from gptailor_merge.objectives.scores import Weights
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.hidden import HiddenStates
from gptailor_merge.scoring.racing import Race
from gptailor_merge.search.baselines.subject import Subject
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.space.space import Space


class Runner(Protocol):
    """Scores and measures recipes and remembers them; see search.driver."""

    def score(
        self, recipes: Sequence[Recipe], *, status: Status = Status.SCORED, keep: int | Race | None = None
    ) -> list[Candidate]:
        """The next candidates, in order."""

    def measure(self, recipe: Recipe, take: Callable[[Plan], Outcome]) -> Candidate:
        """The next candidate: a model on which something else is measured than the objectives."""

    def original(self, digest: str) -> Candidate | None:
        """The first candidate of a digest."""


class Baseline(Protocol):
    """A method of pruning. All that it measures goes through the runner, so that it can be resumed.

    Attributes:
        in_space: whether its recipes are of a search space, so that a search can start from them.
    """

    in_space: bool

    def candidates(self, space: Space, budget: int) -> int:
        """How many candidates it takes at the most, what it comes to included."""

    def find(self, problem: Problem) -> list[Recipe]:
        """What it comes to, one recipe for each size of the space.

        Raises:
            SearchError: nothing that it needs could be scored.
            ConfigError: the model or the objectives do not allow it.
        """


@dataclass(frozen=True)
class Problem:
    """What is to be pruned, to what sizes, and the means to find out how.

    Attributes:
        base: the base model.
        given: the one model to prune; None leaves the whole space to methods that can use it, and to
            the others the base.
        budget: candidates, for methods that propose as many as they are let.
        racing: whether candidates may leave before they are scored on everything.
        hidden: None where no model is at hand.
    """

    space: Space
    run: Runner
    base: Subject
    budget: int
    seed: int
    weights: Weights
    racing: bool = True
    given: Subject | None = None
    hidden: HiddenStates | None = None

    @property
    def subject(self) -> Subject:
        """The model that is pruned."""
        return self.given or self.base

    @property
    def states(self) -> HiddenStates:
        """The hidden states, for those that need them."""
        assert self.hidden is not None
        return self.hidden

    def is_complete(self, candidate: Candidate) -> bool:
        """Whether a candidate, or what it is a duplicate of, was scored on everything."""
        return is_complete(self.run, candidate)

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """The first with the lowest loss of those that were scored on everything.

        Raises:
            SearchError: there is none.
        """
        scored = [candidate for candidate in candidates if self.is_complete(candidate)]
        if not scored:
            cause = candidates[-1].cause if candidates else "nothing was proposed"
            raise SearchError(f"none of {len(candidates)} candidates could be scored; the last: {cause}")
        return min(scored, key=_loss)


def is_complete(run: Runner, candidate: Candidate) -> bool:
    """Whether a candidate, or what it is a duplicate of, was scored on everything."""
    original = run.original(candidate.digest)
    return original is not None and original.loss is not None and original.status != Status.DROPPED


def _loss(candidate: Candidate) -> float:
    assert candidate.loss is not None
    return candidate.loss


def nearest(space: Space, removed: Collection[int], size: int) -> frozenset[int]:
    """As many of these layers as an architecture with a fixed pattern lets go, and as few others."""
    keys = [float(layer in removed) for layer in range(space.depth)]
    return removal(space, keys, size)


def removal(space: Space, keys: Sequence[float], size: int) -> frozenset[int]:
    """The layers that go where those with the highest keys go, see Space.keep."""
    return frozenset(range(space.depth)) - set(space.keep(keys, size))


def extends(space: Space, removed: Collection[int], size: int) -> bool:
    """Whether a model of this size, or this very one, can be made by removing more layers."""
    return set(removed) <= nearest(space, removed, size)


def draws(space: Space, size: int, rng: np.random.RandomState) -> Iterator[frozenset[int]]:
    """Random sets of layers that go."""
    while True:
        yield removal(space, rng.uniform(size=space.depth).tolist(), size)


def removed_by(space: Space, recipe: Recipe) -> frozenset[int]:
    """The layers that a recipe goes without."""
    return frozenset(range(space.depth)) - set(plan(recipe).kept)
