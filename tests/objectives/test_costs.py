"""What models cost: sizes are those of what is written and held, times those of a clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.family import Family
from gptailor_merge.objectives import latency
from gptailor_merge.objectives.costs import CostConfig, cache_name
from gptailor_merge.objectives.kinds import Context
from gptailor_merge.objectives.kv_cache import state_tensors
from gptailor_merge.objectives.latency import DECODED, REPEATS, WARM_UP
from gptailor_merge.objectives.protocols import ModelObjective
from gptailor_merge.objectives.registry import config_class
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from tests.zoo import ZOO, write_family

CPU = torch.device("cpu")
KEPT = (0, 1, 2, 5, 6, 7)


def cost_of(kind: Any, *, dtype: torch.dtype = torch.bfloat16, tokens: int | None = None) -> ModelObjective:
    context = Context(None, Path(), lambda name: pytest.fail(name), CPU, dtype)  # type: ignore[arg-type]
    config = config_class(kind).model_validate({"kind": kind, "tokens": tokens})
    assert isinstance(config, CostConfig)
    return config.cost(context)


def value(objective: ModelObjective, model: Any) -> float:
    with torch.inference_mode():
        (measured,) = objective.measure("model", model, 0, 1)
    return float(measured)


def recipe_of(model: str, kept: tuple[int, ...], **top: Any) -> Recipe:
    slices = [
        {"sources": [{"model": model, "layer_range": [n, n + 1]}], "parameters": {"op": "select"}}
        for n in kept
    ]
    document = {"merge_method": "tailor", "base_model": model, "dtype": "float32", "slices": slices, **top}
    return Recipe.from_mapping(document)


def composed(
    base: str, kept: tuple[int, ...], *, only: tuple[int, ...] | None = None
) -> tuple[Family, Plan, Any]:
    """(family, plan, live model in float32)."""
    plan, family = check_with_family(recipe_of(base, kept))
    composer = Composer(Bank(family, Precision.of("float32", None, torch.float32)))
    return family, plan, composer.compose(plan, only=only)


@pytest.mark.parametrize("name", ZOO)
def test_parameters_are_those_of_the_family(name: str, tmp_path: Path) -> None:
    """Also of the dense member, and where no layer has weights."""
    base = write_family(tmp_path, name)["base"]
    family, plan, model = composed(base, KEPT)
    assert value(cost_of("parameters"), model) == family.parameters(plan.kept)
    assert value(cost_of("parameters"), composed(base, KEPT, only=())[2]) == family.parameters(plan.kept)
    dense = AutoModelForCausalLM.from_pretrained(base)
    assert value(cost_of("parameters"), dense) == family.parameters(range(family.depth))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_bytes_are_those_of_the_written_tensors(
    make_family: Any, tied: bool, out: str, tmp_path: Path
) -> None:
    """A layer that is there twice is written twice; an embedding matrix that is the head, too, once."""
    base = make_family(tied=tied)["base"]
    kept = (0, 1, 1, 4)
    _, _, model = composed(base, kept)
    materialize(recipe_of(base, kept, out_dtype=out), tmp_path / "out")
    written = 0
    for file in (tmp_path / "out").glob("*.safetensors"):
        written += sum(tensor.nbytes for tensor in load_file(file).values())
    assert value(cost_of("bytes", dtype=getattr(torch, out)), model) == written
    assert value(cost_of("parameters"), model) == written / getattr(torch, out).itemsize


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "qwen2", "lfm2", "gpt_oss"])
def test_the_kv_cache_is_as_large_as_one_that_has_seen_the_context(
    name: str, tokens: int, tmp_path: Path
) -> None:
    """With grouped heads, with windows of 4 tokens, and with layers that hold a state of fixed size."""
    _, _, model = composed(write_family(tmp_path, name)["base"], KEPT)
    with torch.inference_mode():
        output = model(torch.arange(tokens)[None], use_cache=True)
    cache = output[cache_name(output)]
    held = sum(tensor.numel() for layer in cache.layers for tensor in state_tensors(vars(layer)))
    for dtype in (torch.float32, torch.bfloat16):
        measured = value(cost_of("kv_cache", dtype=dtype, tokens=tokens), model)
        assert measured == pytest.approx(held * dtype.itemsize / tokens)


def test_the_kv_cache_of_a_llama_is_that_of_its_key_value_heads(family: dict[str, str]) -> None:
    """2 · layers · heads · width · bytes: 2 of 4 heads share their keys."""
    _, _, model = composed(family["base"], (0, 1, 4))
    assert value(cost_of("kv_cache"), model) == 2 * 3 * 2 * 4 * 2


def test_a_window_makes_a_cache_smaller_only_behind_it(tmp_path: Path) -> None:
    _, _, model = composed(write_family(tmp_path, "mistral")["base"], KEPT)
    of_context = [value(cost_of("kv_cache", tokens=tokens), model) for tokens in (2, 3, 6, 12)]
    assert of_context[0] == of_context[1] == 2 * of_context[2] == 4 * of_context[3]


class Clock:
    """Goes on as the model runs: 1 ms for a token and layer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lengths: list[int] = []

    def count(self, module: Any, arguments: Any, output: Any) -> None:
        (ids, *_) = arguments
        self.lengths.append(ids.shape[1])
        self.now += 0.001 * ids.shape[1] * len(module.base_model.layers)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now)
    return clock


def test_latencies_are_read_from_the_clock(family: dict[str, str], clock: Clock) -> None:
    """After a warm-up, of a whole prompt and of a token behind it; a context is not exceeded."""
    _, _, model = composed(family["base"], (0, 1, 4))
    model.register_forward_hook(clock.count)
    assert value(cost_of("prefill_latency", tokens=10), model) == pytest.approx(3 * 10)
    assert clock.lengths == [10] * (WARM_UP + REPEATS)
    clock.lengths.clear()
    assert value(cost_of("decode_latency", tokens=10), model) == pytest.approx(3)
    assert clock.lengths == ([10] + [1] * DECODED) * (WARM_UP + REPEATS)
    assert value(cost_of("prefill_latency"), model) == pytest.approx(3 * (64 - DECODED))


def test_the_median_counts(family: dict[str, str], clock: Clock) -> None:
    """A run that was disturbed does not."""
    _, _, model = composed(family["base"], (0, 1, 4))

    def disturbed(*_: Any) -> None:
        clock.now += 100.0 if len(clock.lengths) % 4 == 0 else 0.0

    model.register_forward_hook(clock.count)
    model.register_forward_hook(disturbed)
    assert value(cost_of("prefill_latency", tokens=10), model) == pytest.approx(30)


@pytest.mark.parametrize("kind", ["kv_cache", "prefill_latency", "decode_latency"])
def test_models_of_one_shape_have_one_number(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their weights and the order of their layers; of other kinds of layers they have another."""
    base = write_family(tmp_path, "gemma3")["base"]
    objective = cost_of(kind, tokens=8)
    run = []
    monkeypatch.setattr(type(objective), "_measured", lambda *_: run.append(1) or float(len(run)))
    short, turned, longer, otherwise = (
        composed(base, kept)[2] for kept in ((0, 1, 5), (2, 5, 3), (0, 1, 2, 5), (0, 1, 2))
    )
    assert [value(objective, model) for model in (short, turned, longer, otherwise, short)] == [1, 1, 2, 3, 1]


@pytest.mark.parametrize("kind", ["kv_cache", "prefill_latency", "decode_latency"])
def test_a_dense_model_has_the_shape_of_one_composed_of_all_its_layers(kind: str, tmp_path: Path) -> None:
    base = write_family(tmp_path, "lfm2")["base"]
    objective = cost_of(kind, tokens=8)
    dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert value(objective, dense) == value(objective, composed(base, tuple(range(8)))[2])
    assert len(objective._known) == 1  # type: ignore[attr-defined]


def test_measuring_leaves_a_model_as_it_is(family: dict[str, str]) -> None:
    _, _, model = composed(family["base"], (0, 1, 4))
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        before = model(ids).logits
    for kind in ("parameters", "bytes", "kv_cache", "prefill_latency", "decode_latency"):
        assert value(cost_of(kind, tokens=9), model) > 0
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, before)


def test_what_costs_depend_on() -> None:
    """Their fingerprints tell dtypes, contexts and prompts apart, but not names."""
    kinds: tuple[Any, ...] = ("parameters", "bytes", "kv_cache", "prefill_latency", "decode_latency")
    plain = [cost_of(kind) for kind in kinds]
    named = [replace(cost_of(kind), name="other") for kind in kinds]  # type: ignore[type-var]
    assert [cost.fingerprint for cost in plain] == [cost.fingerprint for cost in named]
    assert len({cost.fingerprint for cost in plain}) == 5
    changed = {
        kind: cost_of(kind, dtype=torch.float32).fingerprint != cost_of(kind).fingerprint for kind in kinds
    }
    assert [kind for kind, differs in changed.items() if differs] == ["bytes", "kv_cache"]
    changed = {kind: cost_of(kind, tokens=7).fingerprint != cost_of(kind).fingerprint for kind in kinds}
    assert [kind for kind, differs in changed.items() if differs] == [
        "kv_cache",
        "prefill_latency",
        "decode_latency",
    ]
