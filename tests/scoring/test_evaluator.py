from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TextSource, tokenize
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.kl import build_kl
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.scores import Score
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring import evaluator as evaluator_module
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.passes import Passes, predictions_alone
from gptailor_merge.scoring.racing import Race
from gptailor_merge.space.space import Space
from tests.conftest import recipe_of

CPU = torch.device("cpu")
WEIGHTS = {"perplexity": 0.5, "kl": 1.0}
RECIPE = {"dtype": "float32", "out_dtype": "float32"}


def evaluator_of(loaded: Family, sets: tuple[Any, ...], *, batch_tokens: int = 64, **bank: Any) -> Evaluator:
    """Both objectives on these sets."""
    rungs = layout(sets, batch_tokens, device=CPU)
    base = AutoModelForCausalLM.from_pretrained(loaded.base.directory, dtype=torch.float32)
    teachers = {s.name: ("base", lambda batch: predictions_alone(base, batch)) for s in sets}
    batches = [batch for rung in rungs for batch in rung]
    objectives = [
        Perplexity("perplexity", sets),
        build_kl("kl", sets, teachers=teachers, top_k=16, batches=batches),
    ]
    composer = Composer(Bank(loaded, Precision.of("float32", "float32", torch.float32), **bank))
    return Evaluator(composer, Passes(objectives, rungs))


@pytest.fixture
def sets(family: dict[str, str], texts: dict[str, str]) -> tuple[Any, ...]:
    tokenizer = load_tokenizer(Path(family["base"]))
    return tuple(
        tokenize(n, TextSource(f), tokenizer, tokens=128, sequence_length=16) for n, f in texts.items()
    )


@pytest.fixture
def parts(family: dict[str, str], sets: tuple[Any, ...]):  # type: ignore[no-untyped-def]
    """A recipe, its plan, and an evaluator with both objectives."""
    recipe = Recipe.from_mapping(recipe_of(family, **RECIPE))
    plan, loaded = check_with_family(recipe)
    return recipe, plan, evaluator_of(loaded, sets)


@pytest.fixture
def generation(family: dict[str, str]) -> tuple[Family, list[Plan]]:
    """Children of one parent, merges included."""
    loaded = Family.load(family["base"], {n: family[n] for n in ("math", "code")})
    models = tuple(member.model for member in loaded.members)
    space = Space(models, 5, (3,), (1, 2, 3), ("task_arithmetic", "slerp"), "float32", "float32")
    rng = np.random.RandomState(1)
    parent = space.random(rng)
    plans = {p.digest: p for p in (space.decode(space.mutate(parent, rng)) for _ in range(24))}
    return loaded, list(plans.values())


def scores_of(outcomes: list[Outcome]) -> list[Any]:
    assert [outcome.cause for outcome in outcomes] == [None] * len(outcomes)
    return [outcome.scores for outcome in outcomes]


def test_scores_are_those_of_the_written_model(parts, sets, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe, plan, evaluator = parts
    (outcome,) = evaluator.score([plan])
    assert outcome.cause is None
    assert outcome.tokens == 256
    materialize(recipe, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert evaluator.passes.score(written) == outcome.scores
    with torch.inference_mode():
        expected = [
            float(functional.cross_entropy(written(ids[None]).logits[0, :-1], ids[1:]))
            for ids in sets[0].sequences
        ]
    mean = outcome.scores["perplexity"]["stories"].mean
    assert mean == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_the_base_has_no_divergence_from_itself(parts, family: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    whole = {"sources": [{"model": family["base"], "layer_range": [0, 5]}], "parameters": {"op": "select"}}
    plan, _ = check_with_family(Recipe.from_mapping({**recipe_of(family), "slices": [whole]}))
    (outcome,) = parts[2].score([plan])
    assert {score.mean for score in outcome.scores["kl"].values()} == {0.0}


def test_a_failure_is_an_outcome_with_its_cause(parts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    _, plan, evaluator = parts
    monkeypatch.setattr(evaluator.composer, "compose", lambda *_: 1 / 0)
    (outcome,) = evaluator.score([plan])
    assert (outcome.cause, outcome.scores, outcome.tokens) == ("ZeroDivisionError: division by zero", {}, 0)
    monkeypatch.undo()
    monkeypatch.setattr(
        Perplexity, "values", lambda _, __, prediction: torch.full(prediction.next_ids.shape, math.nan)
    )
    (outcome,) = evaluator.score([plan])
    assert outcome.cause == "perplexity on stories is nan, not a finite number"


def test_a_generation_scores_as_its_members_do_alone(parts) -> None:  # type: ignore[no-untyped-def]
    _, plan, evaluator = parts
    plans = [replace(plan, slots=plan.slots[:n]) for n in (4, 2, 3, 4, 1)]
    before = evaluator.layer_tokens
    together = scores_of(evaluator.score(plans))
    assert evaluator.layer_tokens - before == 4 * evaluator.passes.tokens
    assert together == [scores_of(evaluator.score([child]))[0] for child in plans]


def test_a_failure_concerns_one_candidate_of_a_generation(  # type: ignore[no-untyped-def]
    parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, evaluator = parts
    (alone,) = evaluator.score([plan])
    compose = evaluator.composer.compose
    monkeypatch.setattr(evaluator.composer, "compose", lambda p: compose(p) if len(p.slots) == 4 else 1 / 0)
    good, bad, again = evaluator.score([plan, replace(plan, slots=plan.slots[:2]), plan])
    assert good.scores == again.scores == alone.scores
    assert bad.cause == "ZeroDivisionError: division by zero"


def test_layers_streamed_from_the_host_give_the_same_scores(
    generation: tuple[Family, list[Plan]], sets: tuple[Any, ...]
) -> None:
    """Also where the device has room for a single layer."""
    loaded, plans = generation
    expected = scores_of(evaluator_of(loaded, sets).score(plans))
    for cache_bytes in (1, 10**9):
        streaming = evaluator_of(loaded, sets, on_host=True, cache_bytes=cache_bytes)
        assert scores_of(streaming.score(plans)) == expected
        bank = streaming.composer._bank
        assert (len(bank._made) == 1) == (cache_bytes == 1)


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_a_streamed_layer_arrives_once_for_all_batches_that_memory_holds(
    generation: tuple[Family, list[Plan]],
    sets: tuple[Any, ...],
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, plans = generation
    streaming = evaluator_of(loaded, sets, on_host=True, cache_bytes=1)
    monkeypatch.setattr(evaluator_module, "STATES_SHARE", share)
    built: list[Any] = []
    build = streaming.composer.bank._build
    monkeypatch.setattr(streaming.composer.bank, "_build", lambda slot: built.append(slot) or build(slot))
    streaming.score(plans)
    layers = {(depth, slot) for plan in plans for depth, slot in enumerate(plan.adapted_slots)}
    times = 1 if share else len(streaming.passes.batches)
    assert len(built) == times * len(layers)


def test_a_failure_while_streaming_concerns_those_that_share_it(
    generation: tuple[Family, list[Plan]], sets: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, plans = generation
    expected = scores_of(evaluator_of(loaded, sets).score(plans))
    streaming = evaluator_of(loaded, sets, on_host=True)
    bad = plans[0].slots[2]
    bank = streaming.composer._bank
    layer = bank.layer
    monkeypatch.setattr(bank, "layer", lambda slot: 1 / 0 if slot == bad else layer(slot))
    for child, outcome, scores in zip(plans, streaming.score(plans), expected, strict=True):
        if bad in child.slots:
            assert outcome.cause == "ZeroDivisionError: division by zero"
        else:
            assert outcome.scores == scores


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    ],
)
def test_a_batch_that_memory_does_not_hold_is_halved(
    generation: tuple[Family, list[Plan]],
    sets: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    on_host: bool,
) -> None:
    loaded, plans = generation
    expected = scores_of(evaluator_of(loaded, sets).score(plans))
    evaluator = evaluator_of(loaded, sets, on_host=on_host)
    sizes = []
    forward = LlamaMLP.forward

    def limited(self: LlamaMLP, hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        if len(hidden) > 2:
            raise error
        return forward(self, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", limited)
    halved = scores_of(evaluator.score(plans))
    assert 4 in sizes
    for scores, whole in zip(halved, expected, strict=True):
        for objective, by_set in scores.items():
            for name, score in by_set.items():
                assert score.count == whole[objective][name].count
                assert score.mean == pytest.approx(whole[objective][name].mean, rel=1e-6)
    sizes.clear()
    evaluator.score(plans)
    assert max(sizes) == 2  # it has learnt


def test_a_sequence_that_memory_does_not_hold_is_a_failure(parts, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    _, plan, evaluator = parts

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LlamaMLP, "forward", fail)
    (outcome,) = evaluator.score([plan])
    assert outcome.cause is not None
    assert outcome.cause.endswith("OutOfMemoryError: CUDA out of memory")


def test_a_race_scores_the_winners_on_everything_and_the_others_on_less(
    generation: tuple[Family, list[Plan]], sets: tuple[Any, ...]
) -> None:
    loaded, plans = generation
    evaluator = evaluator_of(loaded, sets)
    whole = evaluator.score(plans)
    work = evaluator.layer_tokens
    raced = evaluator.score(plans, Race(1, WEIGHTS, certainty=1.0))
    assert evaluator.layer_tokens - work < work

    def loss(outcome: Outcome) -> float:
        return sum(
            WEIGHTS[o] * Score.total(list(by_set.values())).mean for o, by_set in outcome.scores.items()
        )

    finished = [n for n, outcome in enumerate(raced) if outcome.estimate is None]
    assert 0 < len(finished) < len(plans)
    least = min(loss(raced[n]) for n in finished)
    for n, (outcome, on_everything) in enumerate(zip(raced, whole, strict=True)):
        if n in finished:
            assert outcome.scores == on_everything.scores
            assert outcome.units is not None
            assert outcome.tokens == evaluator.passes.tokens
            total = sum(values.sum() for values in outcome.units.values())
            assert total == pytest.approx(loss(outcome), rel=1e-9)
        else:
            assert outcome.units is None
            assert outcome.tokens < evaluator.passes.tokens
            assert outcome.estimate >= least  # type: ignore[operator]


def test_a_race_with_room_for_all_drops_nobody(
    generation: tuple[Family, list[Plan]], sets: tuple[Any, ...]
) -> None:
    loaded, plans = generation
    evaluator = evaluator_of(loaded, sets)
    raced = evaluator.score(plans, Race(len(plans), WEIGHTS))
    assert scores_of(raced) == scores_of(evaluator.score(plans))


def test_scores_stand_in_the_order_of_the_objectives(parts, sets) -> None:  # type: ignore[no-untyped-def]
    _, plan, evaluator = parts
    short = replace(sets[1], sequences=tuple(ids[:9] for ids in sets[1].sequences), digest="short")
    rungs = layout((sets[0], short), 64, device=CPU)
    unequal = Evaluator(evaluator.composer, Passes([Perplexity("perplexity", (sets[0], short))], rungs))
    (outcome,) = unequal.score([plan])
    assert list(outcome.scores["perplexity"]) == [sets[0].name, sets[1].name]
    assert rungs[0][0].segments[0].digest == "short"  # shorter sequences go first
