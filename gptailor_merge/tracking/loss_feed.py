"""Feeds trackers while a model is healed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gptailor_merge.tracking.tracker import Numbers, Tracker, TrackerFactory, TrackerSettings


@contextmanager
def loss_feed(
    factories: Mapping[str, TrackerFactory], directory: Path, name: str, settings: TrackerSettings
) -> Iterator[Callable[[int, Numbers], None]]:
    """Yields a function that sends the numbers of a step to the trackers, and closes these at the end.

    The trackers are made when the first numbers come. Steps that were sent before are left out.

    Args:
        factories: tracker name -> factory, see `registry.tracker_factories`.
        directory: the directory for files of the trackers.
        name: what trackers call the training.
    """
    trackers: list[Tracker] = []
    steps = [-1]

    def send(step: int, numbers: Numbers) -> None:
        if not trackers:
            trackers.extend(make(directory, name, settings) for make in factories.values())
        if step > steps[-1]:
            steps.append(step)
            for tracker in trackers:
                tracker.log(step, {f"loss/{key}": value for key, value in numbers.items()})

    try:
        yield send
    finally:
        for tracker in trackers:
            tracker.finish({})
