"""Candidates a second with several workers of Ray, and what more of them would come to.

    python benchmarks/scale.py [--config FILE] [--workers N …] [--population N …] [--generations N]
                               [--bound SECONDS] [--json FILE] [--tiny]

Each worker has one thread. All arms score the same generations, children of one parent as a search's are,
and must come to the same losses. For 8 and 64 workers a generation is divided as the crew divides it, every
part is scored by itself in this process, and the parts are taken to run side by side: speedup, and the share
of the workers' time that is lost to waiting for the last part, follow from those times. What messages cost
is in the measured arms alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import SEARCH, Config, JsonFile, Tiny, middle_block, read_config

from gptailor_merge import Plan, Session, open_session, quiet_libraries
from gptailor_merge.api.engine import Job, RayPool, divide, path_of

SIMULATED = (8, 64)


def generations(session: Session, count: int, population: int) -> list[list[Plan]]:
    """Draws generations of children of the base without its middle block."""
    rng = np.random.RandomState(0)
    parent = session.space.encode(session.select(0, middle_block(session.space)))
    return [
        [session.decode(session.space.mutate(parent, rng)) for _ in range(population)] for _ in range(count)
    ]


def measured(session: Session, workers: int, drawn: Sequence[Sequence[Plan]], bound: float) -> dict[str, Any]:
    """Scores the generations on workers of Ray, as many as the bound in seconds lets."""
    job = replace(Job.of(session.config, session.device), workers=workers)
    pool = RayPool(job, session.workplace)
    try:
        executor = pool.executor("objectives")
        for _ in range(2):  # all workers have started, and have every layer in memory
            executor.score(drawn[0])
        losses: list[float] = []
        begun = time.perf_counter()
        for generation in drawn:
            if time.perf_counter() - begun > bound:
                break
            losses += [session.loss(outcome.scores) for outcome in executor.score(generation)]
        seconds = time.perf_counter() - begun
    finally:
        pool.close()
    return {"candidates_per_second": len(losses) / seconds, "candidates": len(losses), "losses": losses}


def simulated(
    session: Session, workers: int, drawn: Sequence[Sequence[Plan]], bound: float
) -> dict[str, Any]:
    """Adds up what the parts of generations take, as if they were scored side by side."""
    evaluator = session.workplace.evaluator("objectives")
    evaluator.score(drawn[0])
    together = side_by_side = worked = 0.0
    begun = time.perf_counter()
    for generation in drawn:
        if time.perf_counter() - begun > bound:
            break
        together += _seconds(evaluator, generation)
        parts = divide([path_of(plan) for plan in generation], workers)
        seconds = [_seconds(evaluator, [generation[position] for position in part]) for part in parts]
        side_by_side += max(seconds)
        worked += sum(seconds)
    return {
        "speedup": together / side_by_side,
        "share_waiting": 1 - worked / (workers * side_by_side),
        "share_of_work_done_twice": 1 - together / worked,
    }


def _seconds(evaluator: Any, plans: Sequence[Plan]) -> float:
    begun = time.perf_counter()
    evaluator.score(plans)
    return time.perf_counter() - begun


def keep(file: Path | None, figures: dict[str, Any]) -> None:
    """Writes the figures so far; the losses only serve to compare."""
    if file is not None:
        arms = {
            name: {key: value for key, value in arm.items() if key != "losses"}
            for name, arm in figures["arms"].items()
        }
        file.write_text(json.dumps({**figures, "arms": arms}, indent=1) + "\n")


def main(
    config: Config = SEARCH,
    workers: Annotated[list[int] | None, typer.Option(help="Workers of each arm.")] = None,
    population: Annotated[list[int] | None, typer.Option(help="Candidates in a generation.")] = None,
    generations_: Annotated[int, typer.Option("--generations", min=1, help="Generations to score.")] = 4,
    bound: Annotated[float, typer.Option(help="Seconds that an arm may take.")] = 60.0,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    arms, sizes = (workers or [1, 2]), (population or [16, 128])
    if tiny:
        arms, sizes, generations_ = [], [4], 1  # Ray takes longer to start than all the rest
    session = open_session(read_config(config, tiny=tiny), device="cpu")
    figures: dict[str, Any] = {"arms": {}, "simulated": {}}
    drawn = generations(session, generations_, sizes[0])
    for count in arms:
        figures["arms"][str(count)] = measured(session, count, drawn, bound)
        keep(json_file, figures)
    first: dict[str, Any] = next(iter(figures["arms"].values()), {})
    for arm in figures["arms"].values():
        shared = min(len(arm["losses"]), len(first["losses"]))
        assert arm["losses"][:shared] == first["losses"][:shared]
        arm["speedup"] = arm["candidates_per_second"] / first["candidates_per_second"]
    for size in sizes:
        drawn = generations(session, generations_, size)
        for count in SIMULATED:
            figures["simulated"][f"{count} workers, {size} candidates"] = simulated(
                session, count, drawn, bound
            )
            keep(json_file, figures)
    keep(json_file, figures)
    for name, arm in figures["arms"].items():
        print(f"{name} workers: {arm['candidates_per_second']:.2f} candidates/s, {arm['speedup']:.2f} x")
    for name, arm in figures["simulated"].items():
        print(f"{name}: {arm['speedup']:.1f} x, {arm['share_waiting']:.0%} of the workers' time is waiting")


if __name__ == "__main__":
    typer.run(main)
