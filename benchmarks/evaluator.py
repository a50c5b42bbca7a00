"""Candidates per second: ours against what others do, on the same candidates and tokens.

    python benchmarks/evaluator.py [--shape demo|tiny|1b|7b] [--device D] [--seconds S] [--json FILE] [--tiny]

Five arms, side by side in one run, each with an empty cache of merged layers:

    ours      a generation scored together, each distinct prefix once per batch
    racing    the same, and candidates that cannot be the best leave early
    plain     composed without a copy, each candidate scored whole, full logits
    rebuild   all tensors are merged or copied into a fixed model in memory, which is scored
    disk      mergekit writes each candidate, from_pretrained loads it, it is scored (on few candidates)

An arm that takes longer than --seconds is left and marked so; FILE is written again after each arm.

Two generations of children by the search's own mutation: `first`, of one parent, as at the start of a
search, and `middle`, of several. Then racing's choice is compared with that of scoring everything on
many one-parent generations. `1b` and `7b` have random weights of the shape of Llama-3.2-1B and Llama-2-7B,
for a GPU, and lie in memory where there is room; `tiny` tries that path out. With --tiny everything is done
once, on a few candidates and tokens.
"""

from __future__ import annotations

import platform
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import torch
import typer
from bounded import FigureFile, bounded
from common import JsonFile, Tiny
from engine_arms import Comparison, matmul_rate, metered_seconds, print_figures
from engine_setup import Setup, demo, generations, one_parent, random_family, scratch

from gptailor_merge import quiet_libraries
from gptailor_merge.api.engine import Evaluator, Race, loss, pick_device, register


def compare_racing(setup: Setup, count: int, candidates: int, seconds: float) -> dict[str, Any]:
    """Counts how often racing picks the same candidate as scoring everything, on one-parent generations."""
    evaluator = Evaluator(setup.composer(), setup.passes)
    done, same, regret, spent = 0, 0, 0.0, {"ours": 0.0, "racing": 0.0}
    with bounded(seconds):
        for seed in range(count):
            plans = one_parent(setup.space, candidates, seed)
            with metered_seconds(setup.device) as of_all:
                whole = [loss(o.scores, setup.weights) for o in evaluator.score(plans)]
            with metered_seconds(setup.device) as of_race:
                raced = evaluator.score(plans, Race(1, setup.weights))
            finished = [n for n, outcome in enumerate(raced) if outcome.estimate is None]
            picked = min(finished, key=lambda n: loss(raced[n].scores, setup.weights))
            spent["ours"] += of_all[0]
            spent["racing"] += of_race[0]
            same += whole[picked] == min(whole)
            regret = max(regret, whole[picked] / min(whole) - 1)
            done += 1
    ratio = spent["ours"] / spent["racing"] if done else None
    return {"generations": done, "same_best": same, "loss_regret": regret, "racing_vs_ours": ratio}


def main(
    shape: Annotated[Literal["demo", "tiny", "1b", "7b"], typer.Option(help="Which family.")] = "demo",
    device: Annotated[str, typer.Option(help="Where models run: auto, cpu, cuda or mps.")] = "auto",
    candidates: Annotated[int, typer.Option(min=2, help="Candidates in a generation.")] = 32,
    written: Annotated[int, typer.Option(min=1, help="How many of them are scored from disk.")] = 4,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens of the demo's calibration set.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="How often every arm is run.")] = 3,
    races: Annotated[int, typer.Option(min=0, help="Generations that racing is checked on.")] = 100,
    seconds: Annotated[float, typer.Option(help="Bound of each arm, and of the comparison of races.")] = 300,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch, in all arms.")] = 1,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    if tiny:
        candidates, written, repeats, races = 4, 1, 1, 2
    torch.set_num_threads(threads)
    quiet_libraries()
    register()
    where = pick_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or "cpu"
    figures = FigureFile(json_file, {"machine": name, "shape": shape, "threads": threads})
    with nullcontext() if shape == "demo" else scratch(shape) as directory:
        if directory is None:
            setup = demo(where, None if tiny else tokens)
        else:
            setup = random_family(shape, directory, where)
        rate = matmul_rate(where, setup.precision.compute or torch.float32)
        print(f"{shape} on {name}, {setup.passes.tokens} tokens a candidate, {rate / 1e9:.0f} GFLOP/s")
        figures.note(candidates=candidates, tokens=setup.passes.tokens, flops_per_second=rate)
        plans = generations(setup.space, candidates)
        first = Comparison(
            setup, plans["first"], written, repeats, rate, seconds, lambda known: figures.note(**known)
        )
        print_figures("first", first.run())
        middle = Comparison(
            setup, plans["middle"], written, repeats, rate, seconds, lambda known: figures.note(middle=known)
        )
        print_figures("middle", middle.run())
        if races:
            figures.note(racing=compare_racing(setup, races, candidates, seconds))
            print(f"\nracing: {figures.document['racing']}")


if __name__ == "__main__":
    typer.run(main)
