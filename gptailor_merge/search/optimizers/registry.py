"""Finds an optimiser by the name in a search config: our default, nevergrad's, or one of another package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError, KeyPath, Problem
from gptailor_merge.extensions import Registry
from gptailor_merge.search.optimizers import nevergrad
from gptailor_merge.search.optimizers.nevergrad import DEFAULT
from gptailor_merge.search.optimizers.protocol import Optimizer, OptimizerFactory
from gptailor_merge.space.space import Space

GROUP = "gptailor_merge.optimizers"
"""The entry-point group of other packages' optimisers: NAME = "module:factory", see OptimizerFactory."""


OPTIMIZERS: Registry[OptimizerFactory] = Registry(
    "optimizer", GROUP, {name: partial(nevergrad.create, name) for name in nevergrad.names()}, ConfigError
)


_KEY: KeyPath = ("search", "optimizer")


def check(name: str, *, racing: bool | None) -> None:
    """Refuses what `create` or a race could not do, before anything is loaded.

    Raises:
        ConfigError: an unknown optimiser, one that cannot be imported, or one that cannot be raced and is
            to be.
    """
    _factory(name)
    if racing and name != DEFAULT and name in nevergrad.names():
        raise cannot_race(name)


def create(
    name: str, space: Space, *, budget: int, population: int, seed: int, axes: Sequence[str] = ()
) -> Optimizer:
    """Makes the optimiser of a name; see OptimizerFactory.

    Raises:
        ConfigError: see `check`, or the optimiser cannot search like this.
    """
    return _factory(name)(space, budget=budget, population=population, seed=seed, axes=axes)


def cannot_race(name: str) -> ConfigError:
    """Returns the error of a race for an optimiser to which every loss counts."""
    message = f"it is not known what {name} keeps of a generation; it cannot be raced, as {DEFAULT!r} can"
    return ConfigError(Problem(("search", "racing"), message))


def _factory(name: str) -> OptimizerFactory:
    if name not in OPTIMIZERS:
        hint = suggest(name, OPTIMIZERS) if len(name) > 2 else ""
        raise ConfigError(Problem(_KEY, f"unknown optimizer, found {name!r}{hint}"))
    try:
        factory = OPTIMIZERS[name]
    except ConfigError as error:
        raise ConfigError([Problem(_KEY, problem.message) for problem in error.problems]) from error
    if not callable(factory):
        kind = type(factory).__name__
        message = f"{name!r} is a {kind}; expected a function or a class that makes an optimizer"
        raise ConfigError(Problem(_KEY, message))
    return factory
