"""Candidates per second: ours against what others do, on the same candidates and tokens.

    python benchmarks/evaluator.py [--shape demo|tiny|1b|7b] [--device D] [--json FILE] [--tiny]

Five arms, side by side in one run, each with a bank of its own:

    disk      mergekit writes each candidate, from_pretrained loads it, it is scored (on few candidates)
    rebuild   all tensors are merged or copied into a fixed model in memory, which is scored
    plain     composed without a copy, each candidate scored whole, full logits
    ours      a generation scored together, each distinct prefix once per batch
    racing    the same, and candidates that cannot be the best leave early

Two generations of children by the search's own mutation: `first`, of one parent, as at the start of a
search, and `middle`, of several. Then racing's choice is compared with that of scoring everything on
many one-parent generations, and on the demo the memory of a long search is watched. `1b` and `7b` have
random weights of the shape of Llama-3.2-1B and Llama-2-7B, for a GPU; `tiny` tries that path out. With
--tiny everything is done once, on a few candidates and tokens.
"""

from __future__ import annotations

import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from common import SEARCH, JsonFile, Tiny, least, middle_block, read_config
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from gptailor_merge import Candidate, Family, Plan, Space, open_session, quiet_libraries
from gptailor_merge.api.engine import (
    Bank,
    Composer,
    Evaluator,
    Passes,
    Point,
    Precision,
    Prediction,
    Race,
    TokenSet,
    Values,
    Weights,
    build_kl,
    compute_dtype,
    extend,
    layout,
    load_model,
    loss,
    lower,
    path_of,
    pick_device,
    plan_of,
    predictions_alone,
    register,
)

SHAPES = {
    "tiny": LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4
    ),
    "1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "7b": LlamaConfig(vocab_size=32000, num_hidden_layers=32),
}
SEQUENCES = {"tiny": (16, 64), "1b": (16, 2048), "7b": (16, 2048)}


@dataclass(frozen=True)
class Setup:
    """The models, the data and the dtypes that all arms share."""

    family: Family
    space: Space
    passes: Passes
    weights: Weights
    precision: Precision
    device: torch.device

    def composer(self, cache_bytes: int = 2 * 1024**3) -> Composer:
        """Makes a composer with a bank of its own: no arm profits from what another has merged."""
        bank = Bank(self.family, self.precision, device=self.device, cache_bytes=cache_bytes)
        bank.preload()
        return Composer(bank)

    def loss(self, values: Values) -> float:
        measured = {key: [torch.cat(parts).double().cpu().numpy()] for key, parts in values.items()}
        return loss(self.passes.scores(measured), self.weights)


def demo(device: torch.device, tokens: int | None) -> Setup:
    """Sets up the built-in family with a number of calibration tokens, or as few as work."""
    config = read_config(SEARCH)
    (objective,) = config.objectives
    objective = least(objective) if tokens is None else objective.model_copy(update={"tokens": tokens})
    searched_only = config.model_copy(update={"objectives": (objective,), "held_out": ()})
    session = open_session(searched_only, device=str(device))
    passes = session.evaluator.passes
    return Setup(session.family, session.space, passes, session.weights, session.precision, device)


def random_family(shape: str, directory: Path, device: torch.device) -> Setup:
    """Sets up two members with random weights in bfloat16, random tokens, and KL to the base."""
    config = SHAPES[shape]
    for seed, name in enumerate(("base", "variant")):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(directory / name)
        del model
    family = Family.load(str(directory / "base"), {"variant": str(directory / "variant")})
    depth = config.num_hidden_layers
    space = Space(
        models=tuple(member.model for member in family.members),
        depth=depth,
        sizes=(depth * 3 // 4,),
        removable=tuple(range(1, depth - 1)),
        methods=("task_arithmetic", "slerp"),
        dtype="float32",
        out_dtype="bfloat16",
    )
    compute = compute_dtype(device, "bfloat16")
    count, length = SEQUENCES[shape]
    ids = torch.randint(config.vocab_size, (count, length), generator=torch.Generator().manual_seed(0))
    sets = (TokenSet("random", tuple(ids), "random"),)
    rungs = layout(sets, 4 * length, device=device)
    teacher = load_model(directory / "base", compute, device)
    objective = build_kl(
        "kl",
        sets,
        teachers={"random": ("base", lambda batch: predictions_alone(teacher, batch))},
        top_k=128,
        batches=[batch for rung in rungs for batch in rung],
    )
    precision = Precision.of("float32", "bfloat16", compute)
    return Setup(family, space, Passes([objective], rungs), {"kl": 1.0}, precision, device)


def generation(space: Space, parents: Sequence[Point], count: int, rng: np.random.RandomState) -> list[Plan]:
    """Returns different children; the parents take turns."""
    children: dict[str, Plan] = {}
    while len(children) < count:
        child = plan_of(space.decode(space.mutate(parents[len(children) % len(parents)], rng)))
        children.setdefault(child.digest, child)
    return list(children.values())


def generations(space: Space, count: int) -> dict[str, list[Plan]]:
    """Returns the `first` and the `middle` generation of a search."""
    rng = np.random.RandomState(0)
    parent = space.encode(space.select(0, middle_block(space)), rng)
    parents = [parent]
    for _ in range(3):  # four parents that some generations have changed
        point = parent
        for _ in range(6):
            point = space.mutate(point, rng)
        parents.append(point)
    return {
        "first": generation(space, [parent], count, rng),
        "middle": generation(space, parents, count, rng),
    }


def one_parent(space: Space, count: int, seed: int) -> list[Plan]:
    """Returns children of a random member without random layers, changed up to a dozen times."""
    rng = np.random.RandomState(seed)
    removed = set(rng.choice(space.removable, space.depth - space.sizes[0], replace=False).tolist())
    parent = space.encode(space.select(rng.randint(len(space.models)), removed), rng)
    for _ in range(rng.randint(12)):
        parent = space.mutate(parent, rng)
    return generation(space, [parent], count, rng)


class Meter:
    """The seconds and the peak bytes that a piece of work took."""

    seconds: float
    peak_bytes: int


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    meter = Meter()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    begun = time.perf_counter()
    yield meter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        meter.peak_bytes = torch.cuda.max_memory_allocated(device)
    else:
        meter.peak_bytes = resident("VmHWM")
    meter.seconds = time.perf_counter() - begun


def resident(field: str) -> int:
    """Returns the memory of this process in bytes: VmRSS, or VmHWM for its peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def score_whole(model: PreTrainedModel, setup: Setup) -> float:
    """Returns the loss by the model's own forward on whole batches, with full logits."""
    values: Values = {}
    with torch.inference_mode():
        for batch in setup.passes.batches:
            logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
            predictions = [
                Prediction.of(s, batch.ids[s.at.start : s.at.stop, 1:], logits[s.at.start : s.at.stop])
                for s in batch.segments
            ]
            extend(values, setup.passes.measure(predictions))
    return setup.loss(values)


def score_each(composer: Composer, plans: list[Plan], setup: Setup) -> list[float]:
    """Scores each candidate whole."""
    return [score_whole(composer.compose(plan), setup) for plan in plans]


def from_disk(plan: Plan, setup: Setup) -> float:
    with tempfile.TemporaryDirectory() as directory:
        configuration = MergeConfiguration.model_validate(lower(plan))
        options = MergeOptions(
            quiet=True, write_model_card=False, copy_tokenizer=False, cuda=setup.device.type == "cuda"
        )
        run_merge(configuration, directory, options)
        LoaderCache().loaders.clear()
        compute = setup.precision.compute or torch.float32
        return score_whole(load_model(Path(directory), compute, setup.device), setup)


def rebuilder(setup: Setup) -> Callable[[Plan], float]:
    """Returns a function that scores plans in one model, whose tensors it overwrites."""
    composer = setup.composer(cache_bytes=1)
    fixed: PreTrainedModel | None = None

    def score(plan: Plan) -> float:
        nonlocal fixed
        composed = composer.compose(plan)
        if fixed is None:
            config = composed.config
            fixed = AutoModelForCausalLM.from_config(config, dtype=setup.precision.compute)
            fixed.to(setup.device).eval().requires_grad_(False)
        for parameter, value in zip(fixed.parameters(), composed.parameters(), strict=True):
            parameter.copy_(value)
        return score_whole(fixed, setup)

    return score


def bare_loops(composer: Composer, plans: list[Plan], setup: Setup) -> tuple[float, float]:
    """Returns the seconds of the layers that must run, each distinct prefix once, and of the heads."""
    layers: dict[Any, torch.nn.Module] = {}
    for plan in plans:
        path = path_of(plan)
        modules = composer.compose(plan).base_model.layers
        layers |= {path[: depth + 1]: module for depth, module in enumerate(modules)}
    model = composer.compose(plans[0])
    body = model.base_model
    in_layers = in_heads = 0.0
    with torch.inference_mode():
        for batch in setup.passes.batches:
            hidden = body.embed_tokens(batch.ids)
            positions = torch.arange(batch.ids.shape[1], device=setup.device)[None]
            rotary = body.rotary_emb(hidden, position_ids=positions)
            with metered_seconds(setup.device) as spent:
                for module in layers.values():
                    module(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
            in_layers += spent[0]
            with metered_seconds(setup.device) as spent:
                for _ in plans:
                    for row in hidden:
                        model.lm_head(body.norm(row)).float().logsumexp(-1)
            in_heads += spent[0]
    return in_layers, in_heads


@contextmanager
def metered_seconds(device: torch.device) -> Iterator[list[float]]:
    spent = [0.0]
    begun = time.perf_counter()
    yield spent
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent[0] = time.perf_counter() - begun


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the floating-point operations per second of a large matrix product on this machine."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    best = float("inf")
    for _ in range(5):
        with metered_seconds(device) as spent:
            a @ a
        best = min(best, spent[0])
    return 2 * size**3 / best


def layer_flops(setup: Setup) -> float:
    """Counts operations per token and layer: two per weight, and the two products of causal attention."""
    config = setup.family.base.config
    length = setup.passes.batches[0].ids.shape[1]
    return 2 * setup.family.layer_sizes[0] + 4 * int(config["hidden_size"]) * length / 2


def measure(plans: list[Plan], setup: Setup, written: int, repeats: int, rate: float) -> dict[str, Any]:
    """Runs all arms on one generation, one after the other and several times; the fastest counts."""
    arms: dict[str, dict[str, Any]] = {}
    losses: dict[str, list[float]] = {}
    whole = setup.passes.tokens * len(plans[0].slots)

    def arm(name: str, of: list[Plan], work: Callable[[], list[float]], layer_tokens: float) -> None:
        with metered(setup.device) as meter:
            losses[name] = work()
        best = arms.setdefault(name, {"seconds": float("inf"), "peak_bytes": 0})
        best["seconds"] = min(best["seconds"], meter.seconds)
        best["candidates_per_second"] = len(of) / best["seconds"]
        best["peak_bytes"] = max(best["peak_bytes"], meter.peak_bytes)
        best["layer_tokens"] = layer_tokens * len(of)

    few = plans[:written]
    split = {}
    in_layers = in_heads = float("inf")
    for _ in range(repeats):
        arm("disk", few, lambda: [from_disk(plan, setup) for plan in few], whole)
        rebuild = rebuilder(setup)
        rebuild(plans[-1])  # makes the fixed model
        arm("rebuild", plans, partial(list, map(rebuild, plans)), whole)
        arm("plain", plans, partial(score_each, setup.composer(), plans, setup), whole)
        for name, race in (("ours", None), ("racing", Race(1, setup.weights))):
            evaluator = Evaluator(setup.composer(), setup.passes)

            def score(evaluator: Evaluator = evaluator, race: Race | None = race) -> list[float]:
                outcomes = evaluator.score(plans, race)
                return [
                    loss(o.scores, setup.weights) if o.estimate is None else float("inf") for o in outcomes
                ]

            arm(name, plans, score, 0)
            arms[name]["layer_tokens"] = evaluator.layer_tokens
            total = sum(evaluator.seconds.values())
            split[name] = {part: seconds / total for part, seconds in evaluator.seconds.items()}
            if name == "ours":
                loops = bare_loops(evaluator.composer, plans, setup)
                in_layers, in_heads = map(min, zip(loops, (in_layers, in_heads), strict=True))
    per_second = {name: values["candidates_per_second"] for name, values in arms.items()}
    ours_s = arms["ours"]["seconds"]
    differences = [
        abs(a - b) / b
        for name in ("disk", "rebuild", "plain")
        for a, b in zip(losses[name], losses["ours"], strict=False)
    ]
    return {
        "arms": arms,
        "ratios": {
            "ours_vs_disk": per_second["ours"] / per_second["disk"],
            "ours_vs_rebuild": per_second["ours"] / per_second["rebuild"],
            "ours_vs_plain": per_second["ours"] / per_second["plain"],
            "racing_vs_plain": per_second["racing"] / per_second["plain"],
            "layer_tokens": arms["plain"]["layer_tokens"] / arms["ours"]["layer_tokens"],
        },
        "limit": {
            "bare_loop": in_layers / ours_s,
            "bare_loop_with_head": (in_layers + in_heads) / ours_s,
            "flops": arms["ours"]["layer_tokens"] * layer_flops(setup) / rate / ours_s,
        },
        "split": split,
        "largest_relative_difference": max(differences),
    }


def compare_racing(setup: Setup, count: int, candidates: int) -> dict[str, Any]:
    """Counts how often racing picks the same candidate as scoring everything, on one-parent generations."""
    evaluator = Evaluator(setup.composer(), setup.passes)
    same, regret, seconds = 0, 0.0, {"ours": 0.0, "racing": 0.0}
    for seed in range(count):
        plans = one_parent(setup.space, candidates, seed)
        with metered_seconds(setup.device) as spent:
            whole = [loss(o.scores, setup.weights) for o in evaluator.score(plans)]
        seconds["ours"] += spent[0]
        with metered_seconds(setup.device) as spent:
            raced = evaluator.score(plans, Race(1, setup.weights))
        seconds["racing"] += spent[0]
        finished = [n for n, outcome in enumerate(raced) if outcome.estimate is None]
        picked = min(finished, key=lambda n: loss(raced[n].scores, setup.weights))
        same += whole[picked] == min(whole)
        regret = max(regret, whole[picked] / min(whole) - 1)
    return {
        "generations": count,
        "same_best": same,
        "loss_regret": regret,
        "racing_vs_ours": seconds["ours"] / seconds["racing"],
    }


def watch_memory(budget: int, *, tiny: bool) -> list[dict[str, float]]:
    """Reads the resident memory in the course of a search on the built-in family."""
    session = open_session(read_config(SEARCH, tiny=tiny), device="cpu")
    readings = []

    def on_candidate(candidate: Candidate) -> None:
        if (candidate.number + 1) % max(1, budget // 8) == 0:
            readings.append({"candidates": candidate.number + 1, "mib": resident("VmRSS") / 2**20})

    session.search(budget=budget, on_candidate=on_candidate)
    return readings


def print_result(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name} generation")
    for arm, values in result["arms"].items():
        print(
            f"  {arm:8} {values['candidates_per_second']:8.2f} candidates/s"
            f"  {values['layer_tokens'] / 1e3:9.0f}k layer-tokens"
            f"  peak {values['peak_bytes'] / 2**20:6.0f} MiB"
        )
    for part in ("ratios", "limit"):
        print(f"  {part}: " + "  ".join(f"{n} {v:.2f}" for n, v in result[part].items()))
    for arm, shares in result["split"].items():
        print(f"  {arm} spends: " + "  ".join(f"{n} {v:.1%}" for n, v in shares.items()))
    print(
        f"  largest relative difference of a loss between arms: {result['largest_relative_difference']:.1e}"
    )


def main(
    shape: Annotated[Literal["demo", "tiny", "1b", "7b"], typer.Option(help="Which family.")] = "demo",
    device: Annotated[str, typer.Option(help="Where models run: auto, cpu, cuda or mps.")] = "auto",
    candidates: Annotated[int, typer.Option(min=2, help="Candidates in a generation.")] = 32,
    written: Annotated[int, typer.Option(min=1, help="How many of them are scored from disk.")] = 4,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens of the demo's calibration set.")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="How often every arm is run.")] = 3,
    races: Annotated[int, typer.Option(min=0, help="Generations that racing is checked on.")] = 100,
    memory: Annotated[int, typer.Option(min=0, help="Candidates of the search that is watched.")] = 2000,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch, in all arms.")] = 1,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    if tiny:
        candidates, written, repeats, races, memory = 4, 1, 1, 2, 8
    torch.set_num_threads(threads)
    quiet_libraries()
    register()
    where = pick_device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or "cpu"
    with tempfile.TemporaryDirectory() as directory:
        if shape == "demo":
            setup = demo(where, None if tiny else tokens)
        else:
            setup = random_family(shape, Path(directory), where)
        rate = matmul_rate(where, setup.precision.compute or torch.float32)
        plans = generations(setup.space, candidates)
        print(f"{shape} on {name}, {setup.passes.tokens} tokens a candidate, {rate / 1e9:.0f} GFLOP/s")
        first = measure(plans["first"], setup, written, repeats, rate)
        print_result("first", first)
        middle = measure(plans["middle"], setup, written, repeats, rate)
        print_result("middle", middle)
        report: dict[str, Any] = {
            "machine": name,
            "shape": shape,
            "threads": threads,
            "candidates": candidates,
            "tokens": setup.passes.tokens,
            **first,
            "middle": middle,
        }
        if races:
            report["racing"] = compare_racing(setup, races, candidates)
            print(f"\nracing: {report['racing']}")
    if memory and shape == "demo":
        report["memory"] = watch_memory(memory, tiny=tiny)
        print("\nresident memory of a search: " + ", ".join(f"{r['mib']:.0f}" for r in report["memory"]))
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
