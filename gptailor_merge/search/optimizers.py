"""nevergrad's optimisers by the names that a search config uses, and our default."""

from __future__ import annotations

import warnings
from typing import Any

import nevergrad as ng

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.search.ranking import rank

DEFAULT = "default"


def names() -> list[str]:
    """Every name that `create` takes."""
    return [DEFAULT, *sorted(ng.optimizers.registry)]


def keeps(name: str, population: int) -> int | None:
    """How many of the best an optimiser of one loss goes on with; None where all it is told counts."""
    return max(2, population // 8) if name == DEFAULT else None


def check(name: str, *, racing: bool | None) -> None:
    """Refuse what `create` or a race could not do, before anything is loaded.

    Raises:
        ConfigError: an unknown name, or racing for an optimiser that all losses count for.
    """
    if name not in names():
        hint = suggest(name, names()) if len(name) > 2 else ""
        raise ConfigError(Problem(("search", "optimizer"), f"unknown optimizer, found {name!r}{hint}"))
    if racing and name != DEFAULT:
        message = f"it is not known what {name} keeps of a generation; only {DEFAULT!r} can be raced"
        raise ConfigError(Problem(("search", "racing"), message))


def create(name: str, parametrization: Any, *, budget: int, population: int, pareto: bool = False) -> Any:
    """An optimiser that is asked for `population` candidates at a time.

    `default` is an elitist evolution strategy whose children are made by the space's own moves: an
    eighth of the population are parents, parents compete with their children, and three children
    in ten also take layers from a second parent. For a front there are as many parents as children,
    selected as in NSGA-II.

    Args:
        name: see `check`.
        pareto: whether it will be told several losses.

    Raises:
        ConfigError: an optimiser that cannot be asked for a generation.
    """
    if name == DEFAULT:
        make: Any = ng.optimizers.EvolutionStrategy(
            popsize=population if pareto else keeps(name, population),
            offsprings=population,
            recombination_ratio=0.3,
            ranker="nsga2" if pareto else "simple",
        )
    else:
        make = ng.optimizers.registry[name]
    with warnings.catch_warnings():
        # nevergrad warns of small budgets; a small budget is the user's choice.
        warnings.simplefilter("ignore")
        try:
            made = make(parametrization, budget=budget, num_workers=population)
        except ValueError as error:
            message = f"{name}: {error}; set search.population to 1"
            raise ConfigError(Problem(("search", "optimizer"), message)) from None
    if name == DEFAULT and pareto:
        made._rank_method = rank
        made._no_hypervolume = True  # which nothing here looks at, and which takes time
    return made
