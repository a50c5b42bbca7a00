"""The arms that score one generation: ours, racing, and what others do. Each has a bound in seconds."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bounded import bounded
from engine_setup import Setup
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor_merge import Plan
from gptailor_merge.api.engine import (
    Composer,
    Evaluator,
    Prediction,
    Race,
    Values,
    extend,
    load_model,
    loss,
    lower,
    path_of,
)

Note = Callable[[dict[str, Any]], None]
"""Takes all that is known so far of a generation."""


class Meter:
    """The seconds and the peak bytes that a piece of work took."""

    seconds: float
    peak_bytes: int


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Yields a meter that is read when the block has ended."""
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
        status = Path("/proc/self/status").read_text().splitlines()
        meter.peak_bytes = 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    meter.seconds = time.perf_counter() - begun


@contextmanager
def metered_seconds(device: torch.device) -> Iterator[list[float]]:
    """Yields a list whose first entry is the block's time when it has ended."""
    spent = [0.0]
    begun = time.perf_counter()
    yield spent
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent[0] = time.perf_counter() - begun


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


def from_disk(plan: Plan, setup: Setup) -> float:
    """Has mergekit write a candidate, loads it and scores it."""
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
            with setup.device:
                fixed = AutoModelForCausalLM.from_config(config, dtype=setup.precision.compute)
            fixed.eval().requires_grad_(False)
        mine, theirs = ([*model.parameters(), *model.buffers()] for model in (fixed, composed))
        for tensor, value in zip(mine, theirs, strict=True):
            tensor.copy_(value)
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


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the floating-point operations per second of a large matrix product on this machine."""
    size = 8192 if device.type == "cuda" else 1024
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


@dataclass
class Comparison:
    """Runs the arms on one generation, one after the other and several times; the fastest run counts.

    Attributes:
        written: how many candidates are scored from the disk.
        rate: floating-point operations per second of a matrix product.
        seconds: bound of an arm in each repeat.
        note: is told all that is known after each arm.
        arms, losses: by the arm's name, what it took and what it scored.
    """

    setup: Setup
    plans: list[Plan]
    written: int
    repeats: int
    rate: float
    seconds: float
    note: Note = lambda figures: None
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    split: dict[str, dict[str, float]] = field(default_factory=dict)
    limit: dict[str, float] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Returns what all arms took."""
        setup, plans, few = self.setup, self.plans, self.plans[: self.written]
        for _ in range(self.repeats):
            self._engine("ours", None)
            self._engine("racing", Race(1, setup.weights))
            composer = setup.composer()
            self._arm("plain", plans, lambda: [score_whole(composer.compose(plan), setup) for plan in plans])
            rebuild = rebuilder(setup)
            self._arm("rebuild", plans, lambda: list(map(rebuild, plans)), before=lambda: rebuild(plans[-1]))
            self._arm("disk", few, lambda: [from_disk(plan, setup) for plan in few])
        return self.figures()

    def _engine(self, name: str, race: Race | None) -> None:
        setup, plans = self.setup, self.plans
        evaluator = Evaluator(setup.composer(), setup.passes)

        def score() -> list[float]:
            outcomes = evaluator.score(plans, race)
            return [loss(o.scores, setup.weights) if o.estimate is None else float("inf") for o in outcomes]

        if not self._arm(name, plans, score):
            return
        total = sum(evaluator.seconds.values())
        self.split[name] = {part: seconds / total for part, seconds in evaluator.seconds.items()}
        self.arms[name] |= {
            "layer_tokens": evaluator.layer_tokens,
            "composing_ms": 1e3 * evaluator.seconds["composing"] / len(plans),
        }
        if race is None:
            loops = bare_loops(evaluator.composer, plans, setup)
            ours = self.arms[name]["seconds"]
            self.limit = {
                "bare_loop": loops[0] / ours,
                "bare_loop_with_head": sum(loops) / ours,
                "flops": evaluator.layer_tokens * layer_flops(setup) / self.rate / ours,
            }
        self.note(self.figures())

    def _arm(
        self,
        name: str,
        plans: list[Plan],
        work: Callable[[], list[float]],
        before: Callable[[], object] = lambda: None,
    ) -> bool:
        """Runs an arm; tells whether it came to its end. One that reaches its bound is marked so."""
        arm = self.arms.setdefault(name, {"ended": "bound"})
        with bounded(self.seconds) as bound:
            before()
            with metered(self.setup.device) as meter:
                losses = work()
        if bound.reached:
            self.note(self.figures())
            return False
        tokens = self.setup.passes.tokens
        seconds = min(arm.get("seconds", float("inf")), meter.seconds)
        arm |= {
            "ended": "whole",
            "seconds": seconds,
            "candidates_per_second": len(plans) / seconds,
            "tokens_per_second": len(plans) * tokens / seconds,
            "peak_bytes": max(arm.get("peak_bytes", 0), meter.peak_bytes),
            "layer_tokens": tokens * len(plans[0].slots) * len(plans),
        }
        self.losses[name] = losses
        self.note(self.figures())
        return True

    def figures(self) -> dict[str, Any]:
        """Returns what is known so far."""
        speed = {n: arm["candidates_per_second"] for n, arm in self.arms.items() if "seconds" in arm}
        pairs = [(ours, other) for ours in ("ours", "racing") for other in ("disk", "rebuild", "plain")]
        ratios = {
            f"{ours}_vs_{other}": speed[ours] / speed[other]
            for ours, other in pairs
            if ours in speed and other in speed
        }
        if "ours" in speed and "plain" in speed:
            ratios["layer_tokens"] = self.arms["plain"]["layer_tokens"] / self.arms["ours"]["layer_tokens"]
        differences = [
            abs(a - b) / b
            for name in ("disk", "rebuild", "plain")
            for a, b in zip(self.losses.get(name, ()), self.losses.get("ours", ()), strict=False)
        ]
        return {
            "arms": self.arms,
            "ratios": ratios,
            "limit": self.limit,
            "split": self.split,
            "largest_relative_difference": max(differences, default=None),
        }


def print_figures(name: str, result: dict[str, Any]) -> None:
    """Prints what the arms took."""
    print(f"\n{name} generation")
    for arm, values in result["arms"].items():
        if "seconds" not in values:
            print(f"  {arm:8} reached its bound")
            continue
        print(
            f"  {arm:8} {values['candidates_per_second']:8.2f} candidates/s"
            f"  {values['layer_tokens'] / 1e3:9.0f}k layer-tokens"
            f"  peak {values['peak_bytes'] / 2**20:6.0f} MiB"
        )
    for part in ("ratios", "limit"):
        print(f"  {part}: " + "  ".join(f"{n} {v:.2f}" for n, v in result[part].items()))
    for arm, shares in result["split"].items():
        print(f"  {arm} spends: " + "  ".join(f"{n} {v:.1%}" for n, v in shares.items()))
    if result["largest_relative_difference"] is not None:
        difference = result["largest_relative_difference"]
        print(f"  largest relative difference of a loss between arms: {difference:.1e}")
