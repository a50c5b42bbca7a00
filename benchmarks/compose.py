"""Milliseconds per candidate: composing in memory against writing with mergekit and loading back.

    python benchmarks/compose.py [--config FILE] [--candidates N] [--written N] [--threads N] [--json FILE]
                                 [--tiny]

Both arms make the same candidates, drawn by the search's own mutation from the kind of parent that a
search starts from (one member, some layers removed), and end with a model ready to run. The written
arm's process is warm: imports and the loader's cache are paid. So is Python's collector, which takes half a
second to walk the objects of the imported libraries, and would strike one candidate out of hundreds: what is
there before is frozen, and what it takes in the loop is a figure of its own.
"""

from __future__ import annotations

import gc
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import SEARCH, Config, JsonFile, Tiny, middle_block, read_config
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM

from gptailor_merge import Family, Plan, quiet_libraries, space_of
from gptailor_merge.api.engine import Bank, Composer, Precision, lower, plan_of, register


def write_and_load(plan: Plan) -> None:
    """Does what a search without a composer does for each candidate."""
    with tempfile.TemporaryDirectory() as directory:
        configuration = MergeConfiguration.model_validate(lower(plan))
        run_merge(configuration, directory, MergeOptions(quiet=True, write_model_card=False))
        LoaderCache().loaders.clear()
        AutoModelForCausalLM.from_pretrained(directory, dtype="auto")


@contextmanager
def collector_watched() -> Iterator[list[float]]:
    """Yields a list that gets the seconds of each run of Python's collector in the block."""
    runs: list[float] = []

    def watch(phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            runs.append(-time.perf_counter())
        elif runs:
            runs[-1] += time.perf_counter()

    gc.collect()
    gc.freeze()
    gc.callbacks.append(watch)
    try:
        yield runs
    finally:
        gc.callbacks.remove(watch)
        gc.unfreeze()


def milliseconds(seconds: list[float]) -> dict[str, float]:
    return {
        "mean": 1e3 * float(np.mean(seconds)),
        "median": 1e3 * float(np.median(seconds)),
        "worst": 1e3 * max(seconds),
    }


def main(
    config: Config = SEARCH,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates to compose in memory.")] = 200,
    written: Annotated[int, typer.Option(min=1, help="How many of them are also written and loaded.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch, in both arms.")] = 1,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    if tiny:
        candidates, written = 8, 2
    torch.set_num_threads(threads)
    quiet_libraries()
    register()
    search_config = read_config(config, tiny=tiny)
    space, rng = space_of(search_config), np.random.RandomState(0)
    parent = space.encode(space.select(0, middle_block(space)), rng)
    plans = [plan_of(space.decode(space.mutate(parent, rng))) for _ in range(candidates)]
    family = Family.load(search_config.family.base, search_config.family.variants)
    bank = Bank(family, Precision.of(space.dtype, space.out_dtype))
    bank.preload()
    composer = Composer(bank)

    composer.compose(plans[0])  # both arms are timed warm
    composed: list[float] = []
    with collector_watched() as collections:
        for plan in plans:
            begun = time.perf_counter()
            composer.compose(plan)
            composed.append(time.perf_counter() - begun)
    write_and_load(plans[0])
    disk: list[float] = []
    for plan in plans[:written]:
        begun = time.perf_counter()
        write_and_load(plan)
        disk.append(time.perf_counter() - begun)

    arms = {"composed_ms": milliseconds(composed), "written_and_loaded_ms": milliseconds(disk)}
    ratio, of_medians = (float(take(disk) / take(composed)) for take in (np.mean, np.median))
    for arm, figures in arms.items():
        print(f"{arm:24}" + "".join(f"{name} {value:9.2f}   " for name, value in figures.items()))
    print(f"ratio of the means: {ratio:.0f}x, of the medians: {of_medians:.0f}x")
    collecting = 1e3 * sum(collections)
    print(f"Python's collector ran {len(collections)} times in the first arm: {collecting:.1f} ms in all")
    if json_file:
        machine = platform.processor() or platform.machine()
        settings = {
            "machine": machine,
            "threads": torch.get_num_threads(),
            "candidates": candidates,
            "collector_ms": collecting,
        }
        json_file.write_text(
            json.dumps({**settings, **arms, "ratio": ratio, "ratio_of_medians": of_medians}, indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
