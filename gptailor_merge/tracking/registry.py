"""Finds the trackers that `--report-to` names: ours, and those of other packages by entry point."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError
from gptailor_merge.tracking.tracker import TrackerFactory

GROUP = "gptailor_merge.trackers"
"""The entry-point group in which other packages offer trackers: NAME = "module:factory"."""


BUILT_IN: Mapping[str, str] = {
    "trackio": "gptailor_merge.tracking.trackio_tracker:TrackioTracker",
    "wandb": "gptailor_merge.tracking.wandb_tracker:WandbTracker",
    "tensorboard": "gptailor_merge.tracking.tensorboard_tracker:TensorBoardTracker",
}
"""Name -> our factory. The name is also the library that it needs and the extra that installs the library."""


NONE = "none"


def tracker_factories(options: Sequence[str]) -> dict[str, TrackerFactory]:
    """Returns the factory of each tracker that `--report-to` names.

    Args:
        options: the values of the option; each may hold several names, separated by commas.

    Raises:
        ConfigError: a name is unknown or ambiguous, a library is not installed, or an entry point
            cannot be imported.
    """
    names = list(dict.fromkeys(name.strip() for option in options for name in option.split(",")))
    offers = _offers()
    for name in names:
        if name not in (*offers, NONE):
            raise ConfigError(f"--report-to: unknown tracker, found {name!r}{suggest(name, [*offers, NONE])}")
    if NONE in names and len(names) > 1:
        raise ConfigError(f"--report-to: none stands alone, found {', '.join(names)}")
    return {name: _load(name, offers[name]) for name in names if name != NONE}


def _offers() -> dict[str, list[EntryPoint]]:
    """Name -> every entry point that offers a tracker of that name; ours come first."""
    offers = {name: [EntryPoint(name, value, GROUP)] for name, value in BUILT_IN.items()}
    for entry_point in entry_points(group=GROUP):
        if entry_point not in offers.setdefault(entry_point.name, []):
            offers[entry_point.name].append(entry_point)
    return offers


def _load(name: str, offers: Sequence[EntryPoint]) -> TrackerFactory:
    if len(offers) > 1:
        values = " and ".join(entry_point.value for entry_point in offers)
        raise ConfigError(f"--report-to {name}: several packages offer it ({values}); uninstall all but one")
    if name in BUILT_IN:
        _check_library(name)
    (entry_point,) = offers
    try:
        factory: object = entry_point.load()
    except Exception as error:  # the code of another package may raise anything while it is imported
        origin = f"{entry_point.value} of {entry_point.dist.name}" if entry_point.dist else entry_point.value
        cause = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--report-to {name}: cannot import {origin}: {cause}") from error
    if not callable(factory):
        raise ConfigError(
            f"--report-to {name}: {entry_point.value} is a {type(factory).__name__}; expected a class or a "
            "function that makes a tracker"
        )
    return cast(TrackerFactory, factory)


def _check_library(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        extra = f"pip install 'gptailor-merge[{name}]'"
        raise ConfigError(f"--report-to {name}: {name} is not installed; {extra}") from None
