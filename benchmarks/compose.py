"""Milliseconds per candidate: composing in memory against writing with mergekit and loading back.

    python benchmarks/compose.py [--config FILE] [--candidates N] [--written N] [--threads N] [--json FILE]

Both arms make the same candidates, drawn by the search's own mutation from the kind of parent that a
search starts from (one member, some layers removed), and end with a model ready to run. The written
arm's process is warm: imports and the loader's cache are paid.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.config import SearchConfig
from gptailor_merge.host.lowering import lower
from gptailor_merge.host.registration import register
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.preparation import prepare

DEMO = Path(__file__).parent.parent / "recipes" / "demo" / "search.yml"


def write_and_load(made: Plan) -> None:
    with tempfile.TemporaryDirectory() as directory:
        configuration = MergeConfiguration.model_validate(lower(made))
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
    config: Path = DEMO,
    candidates: Annotated[int, typer.Option(min=1, help="composed in memory")] = 200,
    written: Annotated[int, typer.Option(min=1, help="of those, also written and loaded")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="of PyTorch, in both arms")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the figures go")] = None,
) -> None:
    torch.set_num_threads(threads)
    register()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    prepared = prepare(SearchConfig.load(config))
    space, rng = prepared.space, np.random.RandomState(0)
    middle = (len(space.removable) - (space.depth - space.sizes[0])) // 2
    removed = set(space.removable[middle : middle + space.depth - space.sizes[0]])
    parent = space.encode(space.select(0, removed), rng)
    plans = [space.decode(space.mutate(parent, rng)) for _ in range(candidates)]
    bank = Bank(prepared.family, Precision.of(space.dtype, space.out_dtype))
    bank.preload()
    composer = Composer(bank)

    composer.compose(plans[0])  # both arms are timed warm
    composed: list[float] = []
    for made in plans:
        begun = time.perf_counter()
        composer.compose(made)
        composed.append(time.perf_counter() - begun)
    write_and_load(plans[0])
    disk: list[float] = []
    for made in plans[:written]:
        begun = time.perf_counter()
        write_and_load(made)
        disk.append(time.perf_counter() - begun)

    result = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "candidates": candidates,
        "composed_ms": milliseconds(composed),
        "written_and_loaded_ms": milliseconds(disk),
        "ratio": float(np.mean(disk) / np.mean(composed)),
    }
    for arm in ("composed_ms", "written_and_loaded_ms"):
        print(f"{arm:24}" + "".join(f"{k} {v:9.2f}   " for k, v in result[arm].items()))
    print(f"ratio of the means: {result['ratio']:.0f}x")
    if json_file:
        json_file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
