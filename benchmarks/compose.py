"""Milliseconds per candidate: composing in memory against writing with mergekit and loading back.

    python benchmarks/compose.py [--config FILE] [--candidates N] [--written N] [--threads N] [--json FILE]
                                 [--tiny]

Both arms make the same candidates, drawn by the search's own mutation from the kind of parent that a
search starts from (one member, some layers removed), and end with a model ready to run. The written
arm's process is warm: imports and the loader's cache are paid.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from typing import Annotated

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
    ratio = float(np.mean(disk) / np.mean(composed))
    for arm, figures in arms.items():
        print(f"{arm:24}" + "".join(f"{name} {value:9.2f}   " for name, value in figures.items()))
    print(f"ratio of the means: {ratio:.0f}x")
    if json_file:
        machine = platform.processor() or platform.machine()
        settings = {"machine": machine, "threads": torch.get_num_threads(), "candidates": candidates}
        json_file.write_text(json.dumps({**settings, **arms, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
