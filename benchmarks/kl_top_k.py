"""The cost of storing only the teacher's k likeliest tokens: KL at several k against the full KL.

    python benchmarks/kl_top_k.py [--recipes N] [--json FILE] [--tiny]

Random recipes of the demo's space are scored against the demo's teachers. Printed for each k: the
mean KL, the largest share of a recipe's full KL that is missed, the correlation of the losses with
the full ones, and the bytes stored per token.
"""

from __future__ import annotations

import json
from typing import Annotated

import numpy as np
import typer
from common import SEARCH, JsonFile, Tiny, random_plans, read_config

from gptailor_merge import open_session, quiet_libraries

TOP_K = (8, 32, 128, 512, 2048)


def main(
    recipes: Annotated[int, typer.Option(min=2, help="Random recipes to score.")] = 12,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    if tiny:
        recipes = 3
    config = read_config(SEARCH, tiny=tiny)
    losses = {}
    for top_k in TOP_K[::2] if tiny else TOP_K:
        objective = config.objectives[0].model_copy(update={"top_k": top_k})
        one_objective = config.model_copy(update={"objectives": (objective,), "held_out": ()})
        session = open_session(one_objective, device="cpu")
        losses[top_k] = np.array(session.losses(random_plans(session, recipes, seed=0)))
    full = losses[TOP_K[-1]]
    rows = {
        top_k: {
            "kl": float(values.mean()),
            "largest_share_missed": float((1 - values / full).max()),
            "correlation": float(np.corrcoef(values, full)[0, 1]),
            "bytes_per_token": 8 * top_k,
        }
        for top_k, values in losses.items()
    }
    for top_k, row in rows.items():
        print(f"top_k {top_k:5}  " + "  ".join(f"{name} {value:.4f}" for name, value in row.items()))
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
