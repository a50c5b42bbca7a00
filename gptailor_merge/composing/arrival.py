"""A layer on its way to a device: it is copied, or merged, on a stream of its own while others compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

import torch


class HoldsTensors(Protocol):
    """Something with tensors, by name."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The tensors, which are on the device."""


T = TypeVar("T", bound=HoldsTensors)


class Arrival(Generic[T]):
    """Makes a thing at once, or on a CUDA stream beside the current one.

    Args:
        make: queues all work on the current stream, and reads nothing that another stream writes.
        stream: None makes it at once.
    """

    def __init__(self, make: Callable[[], T], device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        if stream is None:
            begun = time.perf_counter()
            self._made = make()
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            self._seconds = time.perf_counter() - begun
            return
        self._begun, self._ended = (_timed_event() for _ in range(2))
        with torch.cuda.stream(stream):
            self._begun.record(stream)
            self._made = make()
            self._ended.record(stream)

    def wait(self) -> tuple[T, float]:
        """Returns the thing when it is there, to be used on the current stream, and the seconds it took."""
        if self._stream is None:
            return self._made, self._seconds
        self._ended.synchronize()
        current = torch.cuda.current_stream(self._stream.device)
        for tensor in self._made.tensors.values():
            tensor.record_stream(current)  # the allocator knows it as the other stream's
        return self._made, self._begun.elapsed_time(self._ended) / 1000


def _timed_event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
