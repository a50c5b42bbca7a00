"""Candidates per second: ours against what others do, on the same candidates and tokens.

    python benchmarks/evaluator.py [--candidates N] [--written N] [--threads N] [--json FILE]

Arms, side by side in one run, on the built-in family:

    disk     mergekit writes each candidate, from_pretrained loads it, it is scored (on few candidates)
    plain    composed without a copy, each candidate scored whole, one by one
    ours     a generation scored together, each distinct prefix once per batch

and the bare loop over the layers that ours must run, with no composing, scoring or bookkeeping.
Scores of all arms are compared. Two generations: `first`, children of one parent as at the start of a
search, and `middle`, children of several parents.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from gptailor_merge.cli import quiet_libraries
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import path_of
from gptailor_merge.config import SearchConfig
from gptailor_merge.mergekit_plugin import register
from gptailor_merge.recipe.lowering import lower
from gptailor_merge.recipe.operations import Plan, plan
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.search.driver import loss
from gptailor_merge.search.session import Plans, Session, load_model, prepare, start
from gptailor_merge.search.space import Space

DEMO = Path(__file__).parent.parent / "recipes" / "demo" / "search.yml"
CPU = torch.device("cpu")


def generations(space: Space, count: int) -> dict[str, list[Plan]]:
    """Two generations of `count` plans, from the search's own mutation."""
    rng = np.random.RandomState(0)
    middle = (len(space.removable) - (space.depth - space.kept)) // 2
    removed = set(space.removable[middle : middle + space.depth - space.kept])
    parent = space.encode(space.select(0, removed), rng)
    parents = [parent]
    for _ in range(3):  # four parents that some generations have changed
        point = parent
        for _ in range(6):
            point = space.mutate(point, rng)
        parents.append(point)

    def children(of: list[Any]) -> list[Plan]:
        return [plan(space.decode(space.mutate(of[i % len(of)], rng))) for i in range(count)]

    return {"first": children([parent]), "middle": children(parents)}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begun


def score_from_disk(made: Plan, session: Session) -> float:
    with tempfile.TemporaryDirectory() as directory:
        configuration = MergeConfiguration.model_validate(lower(made))
        run_merge(configuration, directory, MergeOptions(quiet=True, write_model_card=False))
        LoaderCache().loaders.clear()
        model = load_model(Path(directory), torch.float32, CPU)
        return loss(session.evaluator.objectives.score(model), session.settings.weights)


def bare_loop(composer: Composer, plans: list[Plan], session: Session) -> float:
    """Seconds for the layers that must run, once per distinct prefix and batch, and nothing else."""
    layers = {}
    for made in plans:
        path = path_of(made)
        modules = composer.compose(made).base_model.layers
        layers |= {path[: depth + 1]: module for depth, module in enumerate(modules)}
    body = composer.compose(plans[0]).base_model
    seconds = 0.0
    with torch.inference_mode():
        for batch in session.evaluator.objectives.batches:
            hidden = body.embed_tokens(batch.ids)
            positions = torch.arange(batch.ids.shape[1])[None]
            rotary = body.rotary_emb(hidden, position_ids=positions)
            begun = time.perf_counter()
            for module in layers.values():
                module(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
            seconds += time.perf_counter() - begun
    return seconds


def measure(plans: list[Plan], prepared: Plans, session: Session, written: int) -> dict[str, Any]:
    """All arms on one generation."""
    weights = session.settings.weights

    def evaluator() -> Evaluator:
        # A bank of its own for each arm: none profits from what another has merged.
        space = prepared.space
        bank = Bank(prepared.family, Precision.of(space.dtype, space.out_dtype, torch.float32))
        bank.preload()
        objectives = session.evaluator.objectives.objectives
        return Evaluator(Composer(bank), objectives, device=CPU, batch_tokens=prepared.config.batch_tokens)

    plain, ours = evaluator(), evaluator()
    on_disk, disk_s = timed(lambda: [score_from_disk(made, session) for made in plans[:written]])
    alone, plain_s = timed(lambda: [next(plain.score([made])) for made in plans])
    together, ours_s = timed(lambda: list(ours.score(plans)))
    losses = [[loss(o.scores, weights) for o in arm] for arm in (alone, together)]
    rates = {"disk": written / disk_s, "plain": len(plans) / plain_s, "ours": len(plans) / ours_s}
    return {
        "candidates_per_second": rates,
        "layer_tokens": {"plain": plain.layer_tokens, "ours": ours.layer_tokens},
        "ratios": {
            "ours_vs_disk": rates["ours"] / rates["disk"],
            "ours_vs_plain": rates["ours"] / rates["plain"],
            "layer_tokens": plain.layer_tokens / ours.layer_tokens,
            "bare_loop": bare_loop(ours._composer, plans, session) / ours_s,
        },
        "largest_difference": max(
            *(abs(a - b) for a, b in zip(*losses, strict=True)),
            *(abs(a - b) for a, b in zip(on_disk, losses[1], strict=False)),
        ),
    }


def main(
    candidates: Annotated[int, typer.Option(min=1, help="in a generation")] = 32,
    written: Annotated[int, typer.Option(min=1, help="of those, scored from disk")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="of PyTorch, in all arms")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the figures go")] = None,
) -> None:
    torch.set_num_threads(threads)
    quiet_libraries()
    register()
    prepared = prepare(SearchConfig.load(DEMO))
    session = start(prepared, CPU)
    tokens = session.evaluator.objectives.tokens
    report: dict[str, Any] = {"candidates": candidates, "tokens": tokens, "threads": threads}
    for name, plans in generations(prepared.space, candidates).items():
        result = report[name] = measure(plans, prepared, session, written)
        print(f"\n{name} generation of {candidates}, {tokens} tokens each")
        for arm, rate in result["candidates_per_second"].items():
            print(f"  {arm:6} {rate:7.2f} candidates/s")
        print("  " + "  ".join(f"{ratio} {value:.2f}" for ratio, value in result["ratios"].items()))
        print(f"  largest difference of a loss between arms: {result['largest_difference']:.1e}")
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
