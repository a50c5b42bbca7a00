"""The contract of optimisers.

A package that offers an optimiser inherits `OptimizerContract` in a test module of its own and supplies one
fixture, the name by which a search config asks for it:

    class TestMyOptimizer(OptimizerContract):
        @pytest.fixture
        def name(self): return "my_optimizer"

The package must be installed, since the name is looked up among the entry points.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gptailor_merge.errors import ConfigError
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.search.driver import FAILED_LOSS
from gptailor_merge.search.optimizers.protocol import Optimizer, Proposal
from gptailor_merge.search.optimizers.registry import create
from gptailor_merge.space.outer import Outer
from gptailor_merge.space.points import Point
from gptailor_merge.space.space import Space
from gptailor_merge.testing.fresh_interpreter import fresh_digests

MODELS = ("org/base", "org/a", "org/b")
SPACE = Space(
    models=MODELS,
    depth=8,
    sizes=(4, 5),
    removable=tuple(range(1, 7)),
    methods=("linear", "task_arithmetic", "slerp"),
    dtype="float32",
    outer=Outer(MODELS),
    neighbours=1,
)
POPULATION, GENERATIONS = 6, 4
AXES = ("quality", "size")

Tell = Callable[[Optimizer, Proposal], None]
"""Tells an optimiser the loss of a proposal."""


class OptimizerContract:
    """Tests that an optimiser keeps what a search relies on."""

    @pytest.fixture
    def name(self) -> str:
        """The name that a search config has."""
        raise NotImplementedError("a contract suite needs the fixture `name`")

    @pytest.mark.filterwarnings("ignore")  # of the optimiser's library
    def test_every_proposal_is_a_recipe_of_a_target_size(self, name: str) -> None:
        """Points have the space's arrays, and every proposal has an id of its own."""
        optimizer = make(name, seed=0)
        shapes = {array: tuple(shape) for array, shape in SPACE.shapes().items()}
        proposals = [p for _ in range(GENERATIONS) for p in generation(optimizer)]
        assert len({proposal.id for proposal in proposals}) == len(proposals)
        for proposal in proposals:
            assert {array: values.shape for array, values in proposal.point.items()} == shapes
            decoded = SPACE.decode(proposal.point)
            recipe = SPACE.recipe(decoded)
            assert problems(recipe) == []
            assert plan(recipe).digest == decoded.digest
            assert len(decoded.slots) in SPACE.sizes

    @pytest.mark.filterwarnings("ignore")
    def test_suggestions_are_the_first_proposals_in_their_order(self, name: str) -> None:
        optimizer = make(name, seed=0)
        points = suggestions(POPULATION)
        optimizer.suggest(points)
        asked = [SPACE.decode(proposal.point).digest for proposal in optimizer.ask(POPULATION)]
        assert asked == [SPACE.decode(point).digest for point in points]

    @pytest.mark.filterwarnings("ignore")
    def test_the_same_seed_gives_the_same_proposals(self, name: str) -> None:
        """The state of the generators that the whole process shares changes nothing."""
        walks = []
        for seed, shared in ((3, 0), (3, 1), (4, 0)):
            np.random.seed(shared)
            random.seed(shared)
            walks.append(walk(name, seed))
        assert walks[0] == walks[1] != walks[2]

    @pytest.fixture
    def in_one_interpreter(self, name: str) -> tuple[str, ...]:
        """The names that may share a fresh interpreter, this one among them, to save time."""
        return (name,)

    @pytest.mark.filterwarnings("ignore")
    def test_a_fresh_interpreter_gives_the_same_proposals(
        self, name: str, in_one_interpreter: tuple[str, ...]
    ) -> None:
        """A resumed search relies on it; a set of texts, for one, has another order there."""
        fresh = fresh_digests(f"{__name__}:walk", in_one_interpreter, 3)
        assert fresh[name] == walk(name, 3)

    @pytest.mark.filterwarnings("ignore")
    def test_losses_are_matched_by_id(self, name: str) -> None:
        """A loss may come back with another object of the same id, as from another process."""

        def told_by_id(optimizer: Optimizer, proposal: Proposal) -> None:
            copy = Proposal(proposal.id, {array: values.copy() for array, values in proposal.point.items()})
            optimizer.tell(copy, loss_of(proposal.point))

        assert walk(name, 3, tell=told_by_id) == walk(name, 3)

    @pytest.mark.filterwarnings("ignore")
    def test_losses_may_come_in_any_order(self, name: str) -> None:
        optimizer = make(name, seed=0)
        for _ in range(GENERATIONS):
            proposals = optimizer.ask(POPULATION)
            assert len(proposals) == POPULATION
            for proposal in reversed(proposals):
                optimizer.tell(proposal, loss_of(proposal.point))

    @pytest.mark.filterwarnings("ignore")
    def test_failures_do_not_stop_it(self, name: str) -> None:
        """A whole generation may fail."""
        optimizer = make(name, seed=0)
        optimizer.suggest(suggestions(POPULATION))
        for number in range(GENERATIONS):
            for position, proposal in enumerate(optimizer.ask(POPULATION)):
                has_failed = number == 0 or position % 2 == 0
                optimizer.tell(proposal, [FAILED_LOSS] if has_failed else loss_of(proposal.point))

    @pytest.mark.filterwarnings("ignore")
    def test_the_last_generation_may_be_smaller(self, name: str) -> None:
        optimizer = make(name, seed=0)
        generation(optimizer)
        assert len(optimizer.ask(1)) == 1

    @pytest.mark.filterwarnings("ignore")
    def test_it_seeks_a_front_or_says_that_it_cannot(self, name: str) -> None:
        try:
            optimizer = make(name, seed=0, axes=AXES)
        except ConfigError:
            return
        for _ in range(GENERATIONS):
            for proposal in optimizer.ask(POPULATION):
                optimizer.tell(proposal, [*loss_of(proposal.point), float(SPACE.size(proposal.point))])

    @pytest.mark.filterwarnings("ignore")
    def test_it_keeps_some_of_a_generation_or_cannot_be_raced(self, name: str) -> None:
        keeps = make(name, seed=0).keeps
        assert keeps is None or 1 <= keeps <= POPULATION


def make(name: str, seed: int, axes: Sequence[str] = ()) -> Optimizer:
    """Makes the optimiser for the suite's space."""
    budget = POPULATION * GENERATIONS
    return create(name, SPACE, budget=budget, population=POPULATION, seed=seed, axes=axes)


def suggestions(count: int) -> list[Point]:
    """Returns points to begin with."""
    rng = np.random.RandomState(0)
    return [SPACE.random(rng) for _ in range(count)]


def loss_of(point: Point) -> list[float]:
    """Returns the loss of a point, by a rule."""
    return [float(np.sum(point["removal"]) + np.sum(point["kind"]))]


def tell_loss(optimizer: Optimizer, proposal: Proposal) -> None:
    """Tells the loss of a proposal."""
    optimizer.tell(proposal, loss_of(proposal.point))


def generation(optimizer: Optimizer, tell: Tell = tell_loss) -> Sequence[Proposal]:
    """Asks for a generation and tells its losses."""
    proposals = optimizer.ask(POPULATION)
    assert len(proposals) == POPULATION
    for proposal in proposals:
        tell(optimizer, proposal)
    return proposals


def walk(name: str, seed: int, tell: Tell = tell_loss) -> list[str]:
    """Returns the digests of all that a search of this seed proposes."""
    optimizer = make(name, seed)
    optimizer.suggest(suggestions(POPULATION))
    proposals = [p for _ in range(GENERATIONS) for p in generation(optimizer, tell)]
    return [SPACE.decode(proposal.point).digest for proposal in proposals]
