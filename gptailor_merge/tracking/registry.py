"""Finds the trackers that `--report-to` names: ours, and those of other packages by entry point.

Another package offers a tracker in its pyproject.toml; the value makes it, see tracker.TrackerFactory:

    [project.entry-points."gptailor_merge.trackers"]
    ledger = "my_package.ledger:Ledger"
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError
from gptailor_merge.extensions import Registry
from gptailor_merge.tracking.tensorboard_tracker import TensorBoardTracker
from gptailor_merge.tracking.tracker import TrackerFactory
from gptailor_merge.tracking.trackio_tracker import TrackioTracker
from gptailor_merge.tracking.wandb_tracker import WandbTracker

GROUP = "gptailor_merge.trackers"
"""The group of entry points."""


BUILT_IN: Mapping[str, TrackerFactory] = {
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
}
"""Name -> our factory. The name is also the library that it needs and the extra that installs the library."""


TRACKERS: Registry[TrackerFactory] = Registry("tracker", GROUP, BUILT_IN, ConfigError)


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
    for name in names:
        if name not in TRACKERS and name != NONE:
            raise ConfigError(
                f"--report-to: unknown tracker, found {name!r}{suggest(name, [*TRACKERS, NONE])}"
            )
    if NONE in names and len(names) > 1:
        raise ConfigError(f"--report-to: none stands alone, found {', '.join(names)}")
    return {name: _factory(name) for name in names if name != NONE}


def _factory(name: str) -> TrackerFactory:
    try:
        factory = TRACKERS[name]
    except ConfigError as error:
        raise ConfigError(f"--report-to {name}: {error}") from error.__cause__
    if name in BUILT_IN:
        _check_library(name)
    if not callable(factory):
        raise ConfigError(
            f"--report-to {name}: expected a class or a function that makes a tracker, "
            f"found a {type(factory).__name__}"
        )
    return factory


def _check_library(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        extra = f"pip install 'gptailor-merge[{name}]'"
        raise ConfigError(f"--report-to {name}: {name} is not installed; {extra}") from None
