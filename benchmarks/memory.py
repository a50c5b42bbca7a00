"""Resident memory in the course of a long search on the built-in family.

    python benchmarks/memory.py [--candidates N] [--tokens N] [--seconds S] [--json FILE] [--tiny]

The search is that of the demo, with few tokens for each candidate. Once caches are full, from candidate 500
on, memory swings by some 30 MiB while layers come and go. How far it grows is told by the medians of the
first and of the last ten readings from there on, one every 100 candidates. GROWTH MiB are allowed; more ends
with exit code 1. How far it swings is told, too.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from bounded import FigureFile, bounded
from common import SEARCH, JsonFile, Tiny, least, read_config

from gptailor_merge import Candidate, open_session, quiet_libraries

WARM, GROWTH, COMPARED = 500, 20.0, 10


def resident() -> float:
    """Returns the memory of this process that is not on the disk, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def growth(readings: list[dict[str, float]]) -> float | None:
    """Returns the median of the last readings less that of the first after the warm-up, MiB."""
    warm = [reading["mib"] for reading in readings if reading["candidates"] >= WARM]
    count = min(len(warm), COMPARED)
    return median(warm[-count:]) - median(warm[:count]) if warm else None


def swing(readings: list[dict[str, float]]) -> float | None:
    """Returns how far the readings after the warm-up are apart, MiB."""
    warm = [reading["mib"] for reading in readings if reading["candidates"] >= WARM]
    return max(warm) - min(warm) if warm else None


def main(
    candidates: Annotated[int, typer.Option(min=2, help="Candidates of the search.")] = 4000,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens that a candidate is scored on.")] = 512,
    pareto: Annotated[bool, typer.Option("--front", help="Search a front of loss and parameters.")] = False,
    seconds: Annotated[float, typer.Option(help="The search ends after this time.")] = 600,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    candidates, tokens = (16, 128) if tiny else (candidates, tokens)
    torch.set_num_threads(1)
    quiet_libraries()
    config = read_config(SEARCH, tiny=tiny)
    (objective,) = map(least, config.objectives)
    objective = objective.model_copy(update={"tokens": tokens})
    document = config.model_copy(update={"objectives": (objective,), "held_out": ()}).document()
    if pareto:
        document["objectives"].append({"kind": "parameters"})
        document["target"] = {"layers": [7, 9]}
    session = open_session(type(config).model_validate(document), device="cpu")
    readings: list[dict[str, float]] = []
    figures = FigureFile(json_file)

    def on_candidate(candidate: Candidate) -> None:
        count = candidate.number + 1
        if count % min(100, candidates // 2) == 0:
            readings.append({"candidates": count, "mib": round(resident(), 1)})
            known = {"growth_mib": growth(readings), "swing_mib": swing(readings)}
            figures.note(tokens=tokens, readings=readings, **known, ended="not yet")
            print(f"{count:6} candidates {readings[-1]['mib']:8.1f} MiB", flush=True)

    with bounded(seconds) as bound:
        session.search(budget=candidates, on_candidate=on_candidate)
    figures.note(ended="bound" if bound.reached else "whole")
    grown = growth(readings)
    if grown is not None:
        print(f"{grown:.1f} MiB more at the end than after {WARM} candidates; {GROWTH:.0f} are allowed")
        raise SystemExit(int(grown > GROWTH))


if __name__ == "__main__":
    typer.run(main)
