"""Adds up what the parts of a piece of work take, without holding a GPU up."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import torch


class Stopwatch:
    """Times parts of a piece of work, on a GPU by events that it passes on its way.

    A part that waits for the one before counts the wait, too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._passed: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: list[tuple[str, float]] = []

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Times a part; parts of one name are added up."""
        if self._device.type != "cuda":
            begun = time.perf_counter()
            try:
                yield
            finally:
                self._seconds.append((part, time.perf_counter() - begun))
            return
        stream = torch.cuda.current_stream(self._device)
        first = stream.record_event(_event())
        try:
            yield
        finally:
            self._passed.append((part, first, stream.record_event(_event())))

    def read_into(self, seconds: MutableMapping[str, float]) -> None:
        """Adds what was timed since the last reading, part by part; waits until a GPU has done it all."""
        if self._passed:
            torch.cuda.current_stream(self._device).synchronize()
        self._seconds += [(part, first.elapsed_time(last) / 1000) for part, first, last in self._passed]
        for part, spent in self._seconds:
            seconds[part] += spent
        self._passed, self._seconds = [], []


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
