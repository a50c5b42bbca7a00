"""What it costs to store only the teacher's k likeliest tokens: KL at several k against the full KL.

    python benchmarks/kl_top_k.py [--json FILE]

Random recipes of the demo's space are scored against the demo's teachers. Printed for each k: the
mean KL, the largest share of a recipe's full KL that is missed, the correlation of the losses with
the full ones, and the bytes stored per token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from gptailor_merge.config import SearchConfig
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.session import start
from gptailor_merge.search.outcomes import loss

DEMO = Path(__file__).parent.parent / "recipes" / "demo" / "search.yml"
TOP_K = (8, 32, 128, 512, 2048)


def main(
    recipes: int = 12,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the figures go")] = None,
) -> None:
    config = SearchConfig.load(DEMO)
    prepared = prepare(config)
    rng = np.random.RandomState(0)
    plans = [prepared.space.decode(prepared.space.random(rng)) for _ in range(recipes)]
    losses = {}
    for top_k in TOP_K:
        objective = config.objectives[0].model_copy(update={"top_k": top_k})
        session = start(
            prepare(config.model_copy(update={"objectives": (objective,), "held_out": ()})),
            torch.device("cpu"),
        )
        outcomes = session.evaluator.score(plans)
        losses[top_k] = np.array([loss(o.scores, session.settings.weights) for o in outcomes])
    full = losses[TOP_K[-1]]
    rows = {
        k: {
            "kl": float(values.mean()),
            "largest_share_missed": float((1 - values / full).max()),
            "correlation": float(np.corrcoef(values, full)[0, 1]),
            "bytes_per_token": 8 * k,
        }
        for k, values in losses.items()
    }
    for k, row in rows.items():
        print(f"top_k {k:5}  " + "  ".join(f"{name} {value:.4f}" for name, value in row.items()))
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
