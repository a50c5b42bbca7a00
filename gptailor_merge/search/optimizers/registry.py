"""Finds an optimiser by the name in a search config: our default, nevergrad's, or one of another package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError, KeyPath, Problem
from gptailor_merge.search import plugins
from gptailor_merge.search.optimizers import nevergrad
from gptailor_merge.search.optimizers.nevergrad import DEFAULT
from gptailor_merge.search.optimizers.protocol import Optimizer, OptimizerFactory
from gptailor_merge.space.space import Space

GROUP = "gptailor_merge.optimizers"
"""The entry-point group of other packages' optimisers: NAME = "module:factory", see OptimizerFactory."""


_KEY: KeyPath = ("search", "optimizer")


def names() -> list[str]:
    """Return every name that `create` takes."""
    return [*nevergrad.names(), *plugins.offered(GROUP)]


def check(name: str, *, racing: bool | None) -> None:
    """Refuse what `create` or a race could not do, before anything is loaded.

    Raises:
        ConfigError: an unknown optimiser, one that cannot be imported, or one that cannot be raced and is
            to be.
    """
    if name in nevergrad.names():
        if racing and name != DEFAULT:
            raise cannot_race(name)
    elif name in plugins.offered(GROUP):
        _factory(name)
    else:
        hint = suggest(name, names()) if len(name) > 2 else ""
        raise ConfigError(Problem(_KEY, f"unknown optimizer, found {name!r}{hint}"))


def create(
    name: str, space: Space, *, budget: int, population: int, seed: int, axes: Sequence[str] = ()
) -> Optimizer:
    """Make the optimiser of a name; see OptimizerFactory.

    Raises:
        ConfigError: see `check`, or the optimiser cannot search like this.
    """
    check(name, racing=None)
    if name in nevergrad.names():
        return nevergrad.create(name, space, budget=budget, population=population, seed=seed, axes=axes)
    return _factory(name)(space, budget=budget, population=population, seed=seed, axes=axes)


def cannot_race(name: str) -> ConfigError:
    """Return the error of a race for an optimiser to which every loss counts."""
    message = (
        f"it is not known what {name} keeps of a generation; an optimizer of which it is known, as of "
        f"{DEFAULT!r}, can be raced"
    )
    return ConfigError(Problem(("search", "racing"), message))


def _factory(name: str) -> OptimizerFactory:
    factory = plugins.load(GROUP, name, _KEY)
    if not callable(factory):
        kind = type(factory).__name__
        message = (
            f"{name!r} of another package is a {kind}; expected a function or class that makes an optimizer"
        )
        raise ConfigError(Problem(_KEY, message))
    return cast(OptimizerFactory, factory)
