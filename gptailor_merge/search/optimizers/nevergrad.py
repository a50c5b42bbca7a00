"""The adapter to nevergrad: its optimisers over our points, and our default, made of its parts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import nevergrad as ng
import numpy as np
from nevergrad.optimization.multiobjective import nsga2

from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.search.optimizers.protocol import Proposal
from gptailor_merge.space.points import Point
from gptailor_merge.space.space import Space

DEFAULT = "default"


def names() -> list[str]:
    """Returns the name of our default, and nevergrad's."""
    return [DEFAULT, *sorted(ng.optimizers.registry)]


def create(
    name: str, space: Space, *, budget: int, population: int, seed: int, axes: Sequence[str] = ()
) -> NevergradOptimizer:
    """Returns an optimiser by one of these names.

    `default` is an elitist evolution strategy whose children are made by the space's own moves: an
    eighth of the population are parents, parents compete with their children, and three children
    in ten also take layers from a second parent. For a front there are as many parents as children,
    selected as in NSGA-II.

    Raises:
        ConfigError: the optimiser cannot be asked for a generation.
    """
    keeps = max(2, population // 8) if name == DEFAULT and not axes else None
    make = ng.optimizers.registry[name] if name != DEFAULT else _default(population, keeps)
    try:
        optimizer = adapted(make, space, budget=budget, population=population, seed=seed, keeps=keeps)
    except ValueError as error:
        message = f"{name}: {error}; set search.population to 1"
        raise ConfigError(Problem(("search", "optimizer"), message)) from None
    if name == DEFAULT:
        optimizer.forget_what_is_told()
    if name == DEFAULT and axes:
        optimizer.rank_by_dominance()
        optimizer.keeps = population
    return optimizer


def adapted(
    make: Any, space: Space, *, budget: int, population: int, seed: int, keeps: int | None
) -> NevergradOptimizer:
    """Returns one of nevergrad's optimisers behind our protocol.

    Args:
        make: a class or a configured optimiser of nevergrad.
        keeps: how many of the best it goes on with; None where every loss counts.

    Raises:
        ValueError: the optimiser cannot be asked for a generation.
    """
    with warnings.catch_warnings():
        # nevergrad warns of small budgets; a small budget is the user's choice.
        warnings.simplefilter("ignore")
        optimizer = make(_parameters(space, seed), budget=budget, num_workers=population)
    return NevergradOptimizer(optimizer, keeps)


def _default(population: int, keeps: int | None) -> Any:
    return ng.optimizers.EvolutionStrategy(
        popsize=population if keeps is None else keeps,
        offsprings=population,
        recombination_ratio=0.3,
        ranker="nsga2" if keeps is None else "simple",
    )


class NevergradOptimizer:
    """One of nevergrad's optimisers behind our protocol."""

    def __init__(self, optimizer: Any, keeps: int | None) -> None:
        self.keeps = keeps
        self._optimizer = optimizer
        self._asked: dict[str, Any] = {}

    def rank_by_dominance(self) -> None:
        """Selects the survivors of a generation by `rank`."""
        self._optimizer._rank_method = rank
        # Nothing here looks at nevergrad's own front and its volume: one keeps every point, one takes time.
        self._optimizer._no_hypervolume = True
        self._optimizer._preprocess_multiobjective = lambda candidate: 0.0

    def forget_what_is_told(self) -> None:
        """Keeps no archive of points; an evolution strategy has its parents and looks at nothing else."""
        self._optimizer.pruning = lambda archive: type(archive)()

    def suggest(self, points: Sequence[Point]) -> None:
        """See Optimizer.suggest; nevergrad takes the last suggestion first."""
        for point in reversed(points):
            self._optimizer.suggest(dict(point))

    def ask(self, count: int) -> list[Proposal]:
        """See Optimizer.ask."""
        candidates = [self._optimizer.ask() for _ in range(count)]
        self._asked |= {candidate.uid: candidate for candidate in candidates}
        return [Proposal(candidate.uid, candidate.value) for candidate in candidates]

    def tell(self, proposal: Proposal, losses: Sequence[float]) -> None:
        """See Optimizer.tell."""
        loss = losses[0] if len(losses) == 1 else list(losses)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some optimisers warn of points that they did not propose
            self._optimizer.tell(self._asked.pop(proposal.id), loss)


def _parameters(space: Space, seed: int) -> _SpaceParameters:
    """Returns the points of a space as nevergrad takes them, drawn and changed with this seed."""
    arrays = {
        name: ng.p.Array(init=np.full(shape, 0.5), lower=0.0, upper=1.0)
        for name, shape in space.shapes().items()
    }
    parameters = _SpaceParameters(space, arrays)
    parameters.random_state.seed(seed)
    return parameters


class _SpaceParameters(ng.p.Dict):  # type: ignore[misc]  # nevergrad is not typed
    """nevergrad's parameter whose mutation and recombination are the space's own."""

    value: Any

    def __init__(self, space: Space, arrays: Mapping[str, Any]) -> None:
        super().__init__(**arrays)
        self.space = space

    def mutate(self) -> None:
        """See Space.mutate."""
        self._check_frozen()
        self.value = self.space.mutate(self.value, self.random_state)

    def sample(self) -> _SpaceParameters:
        """Returns a uniformly random point."""
        child: _SpaceParameters = self.spawn_child(self.space.random(self.random_state))
        child._set_parenthood(None)
        return child

    def recombine(self, *others: _SpaceParameters) -> None:
        """See Space.recombine."""
        self._check_frozen()
        for parent in others:
            self.value = self.space.recombine(self.value, parent.value, self.random_state)


class _Ranking(nsga2.FastNonDominatedRanking):  # type: ignore[misc]  # nevergrad is not typed
    def compare(self, candidate1: Any, candidate2: Any) -> int:
        """Compares by dominance.

        nevergrad counts who wins in more objectives: with three the largest model would win alone.
        """
        first, second = candidate1.losses, candidate2.losses
        return int(np.all(second <= first) and np.any(second < first)) - int(
            np.all(first <= second) and np.any(first < second)
        )


def rank(population: list[Any], n_selected: int) -> dict[str, int]:
    """Returns the survivors of NSGA-II's selection (K. Deb et al., 2002), uid -> front, by nevergrad's parts.

    Whole fronts survive; of the last front those with the most room around them.
    """
    survivors: dict[str, int] = {}
    crowding = nsga2.CrowdingDistance()
    for number, front in enumerate(_Ranking().compute_ranking(population, k=n_selected)):
        crowding.compute_distance(front)
        for candidate in crowding.sort(front)[: n_selected - len(survivors)]:
            survivors[candidate.uid] = number
    return survivors
