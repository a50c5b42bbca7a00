"""Chooses how many threads compute on a CPU: one, or as many as PyTorch takes by itself.

On a machine that is busy with other work, threads wait for each other, and one is many times faster than two.
So both are measured, for a tenth of a second each, unless OMP_NUM_THREADS or MKL_NUM_THREADS says it. Matrix
products may add up in another order with another number of threads, and scores then differ in their last
bits: a run keeps the number that it was begun with.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SECONDS = 0.05
ROUNDS = 2
GAIN = 1.1
"""More threads than one must be this much faster: a search may share the machine, and so may other work."""


OPERATIONS = 1e9
"""Floating-point operations of the product that is timed, about."""


def threads() -> int:
    """Returns OMP_NUM_THREADS where it is set, or one: workers share the cores of a machine."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else 1


def choose_threads(
    device: torch.device, layer_size: int, *, before: int | None, is_new: bool, has_workers: bool = False
) -> int | None:
    """Returns the number of threads to compute with; None where the device is no CPU.

    Args:
        layer_size: the number of parameters of a layer.
        before: the number that the run has recorded.
        is_new: False where a run goes on; without a record it goes on with PyTorch's number.
        has_workers: True where workers score, which this process computes like.
    """
    if device.type != "cpu":
        return None
    if has_workers:
        return threads()
    usual = torch.get_num_threads()
    if any(os.environ.get(name) for name in VARIABLES):
        return usual
    if not is_new:
        return before or usual
    if usual == 1:
        return 1
    seconds = dict.fromkeys((1, usual), float("inf"))
    for _ in range(ROUNDS):
        for number in seconds:
            with computing_with(number):
                seconds[number] = min(seconds[number], seconds_of_product(layer_size))
    return usual if seconds[1] >= GAIN * seconds[usual] else 1


def seconds_of_product(layer_size: int) -> float:
    """Returns the mean time of the matrix products that fit into SECONDS, one at least."""
    width = max(1, round(math.sqrt(layer_size / 12)))  # of hidden states, in a layer with the usual MLP
    rows = max(16, min(512, round(OPERATIONS / (8 * width**2))))
    states, weight = torch.ones(rows, width), torch.ones(4 * width, width)
    states @ weight.T  # threads are made when they are first needed
    begun, count = time.perf_counter(), 0
    while not count or time.perf_counter() - begun < SECONDS:
        states @ weight.T
        count += 1
    return (time.perf_counter() - begun) / count


@contextmanager
def computing_with(number: int | None) -> Iterator[None]:
    """Has PyTorch compute with a number of threads inside the block; None leaves what is set."""
    usual = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if torch.get_num_threads() != usual:
            torch.set_num_threads(usual)
