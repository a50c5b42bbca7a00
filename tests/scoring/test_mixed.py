"""Objectives of all kinds side by side: together as alone, raced or not, and when one of them fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptailor_merge.calibration.batches import RUNGS
from gptailor_merge.calibration.texts import TextSource, tokenize
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.parameter_count import ParameterCount
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import UnitSet
from gptailor_merge.objectives.repetition import Repetition, repetition
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.task import objective_of
from gptailor_merge.objectives.tasks.task_items import TaskSettings, load_items
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.scoring.racing import Race
from gptailor_merge.space.space import Space
from tests.conftest import DEPTH, MakeFamily
from tests.objectives.tasks.test_likelihood import evaluator_of
from tests.objectives.tasks.test_likelihood import tokenizer as tokenizer

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
WEIGHTS = {"margin": 0.3, "perplexity": 1.0, "exact_match": 0.5, "repetition": 1.0, "parameters": 1e-4}


@pytest.fixture
def loaded(make_family: MakeFamily) -> Family:
    directories = make_family(dtype=torch.float32)
    return Family.load(directories["base"], {n: directories[n] for n in ("math", "code")})


@pytest.fixture
def evaluator(loaded: Family, tokenizer: Any, tasks: Path, texts: dict[str, str]) -> Evaluator:
    """Likelihoods of options, texts, generated answers, repetition and a cost."""
    lm = encoder(loaded.base.directory, tokenizer)
    sources = {name: TextSource(file) for name, file in texts.items()}
    sets = tuple(tokenize(n, s, tokenizer, tokens=64, sequence_length=16) for n, s in sources.items())
    choice, generation = (
        load_items(TaskSettings((name,), tasks), lm) for name in ("tiny_choice", "tiny_generation")
    )
    return evaluator_of(
        loaded,
        [
            objective_of(choice, "margin", trees=True, lm=lm),
            Perplexity("perplexity", sets),
            objective_of(generation, None, trees=False, lm=lm, batch_size=1),
            repetition(
                "repetition", sources, tokenizer, prompts=9, prompt_tokens=4, new_tokens=8, batch_size=2
            ),
            ParameterCount("parameters"),
        ],
        batch_tokens=64,
    )


def generation_of(loaded: Family, seed: int, count: int) -> list[Plan]:
    """Children of one parent, of several sizes, merges included."""
    models = tuple(member.model for member in loaded.members)
    space = Space(models, DEPTH, (2, 3, 4), (1, 2, 3), ("task_arithmetic", "slerp"), "float32", "float32")
    rng = np.random.RandomState(seed)
    parent = space.random(rng)
    children = {p.digest: p for p in (space.decode(space.mutate(parent, rng)) for _ in range(count))}
    return list(children.values())


def loss(outcome: Outcome) -> float:
    return sum(
        WEIGHTS[name] * Score.total(list(by_set.values())).mean for name, by_set in outcome.scores.items()
    )


@settings(
    max_examples=2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 10**6), certainty=st.sampled_from([0.5, 1.0, 4.0]), keep=st.integers(1, 3))
def test_a_generation_is_scored_as_its_members_are_alone(
    loaded: Family, evaluator: Evaluator, seed: int, certainty: float, keep: int
) -> None:
    """And those that survive a race as if there had been none."""
    plans = generation_of(loaded, seed, 6)
    together = evaluator.score(plans)
    assert [outcome.cause for outcome in together] == [None] * len(plans)
    alone = [evaluator.score([child])[0] for child in plans]
    assert [outcome.scores for outcome in together] == [outcome.scores for outcome in alone]
    raced = evaluator.score(plans, Race(keep, WEIGHTS, certainty=certainty))
    survivors = [n for n, outcome in enumerate(raced) if outcome.estimate is None]
    assert len(survivors) >= min(keep, len(plans))
    for n in survivors:
        assert raced[n].scores == together[n].scores
        assert raced[n].units is not None
        assert sum(units.sum() for units in raced[n].units.values()) == pytest.approx(loss(raced[n]))
    kept = sorted(loss(raced[n]) for n in survivors)[min(keep, len(survivors)) - 1]
    for outcome in raced:
        # The two are sums of the same numbers in another order.
        assert outcome.estimate is None or outcome.estimate >= kept - 1e-12 * abs(kept)


def test_each_objective_has_all_its_units(loaded: Family, evaluator: Evaluator) -> None:
    (outcome, *_) = evaluator.score(generation_of(loaded, 1, 3))
    counts = {name: [score.count for score in by_set.values()] for name, by_set in outcome.scores.items()}
    assert counts == {
        "margin": [12],
        "perplexity": [60, 60],
        "exact_match": [12],
        "repetition": [9, 9],
        "parameters": [1],
    }


def test_a_dropped_candidate_is_measured_no_further(
    loaded: Family, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither are those that failed."""
    asked: list[int] = []
    measure = Repetition.measure

    def counted(self: Repetition, name: str, model: Any, first: int, stop: int) -> Any:
        asked.append(stop - first)
        return measure(self, name, model, first, stop)

    monkeypatch.setattr(Repetition, "measure", counted)
    plans = generation_of(loaded, 3, 8)
    raced = evaluator.score(plans, Race(1, WEIGHTS, certainty=0.5))
    dropped = [outcome for outcome in raced if outcome.estimate is not None]
    assert 0 < len(dropped) < len(plans)
    assert 18 * (len(plans) - len(dropped)) < sum(asked) < 18 * len(plans)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (torch.OutOfMemoryError("CUDA out of memory"), "torch.OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_a_failure_on_a_whole_model_concerns_one_candidate(
    loaded: Family, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str
) -> None:
    plans = generation_of(loaded, 1, 4)
    expected = evaluator.score(plans)
    measure = Repetition.measure

    def fails(self: Repetition, name: str, model: Any, first: int, stop: int) -> Any:
        if model.base_model.layers[1].mlp.up_proj.weight.data_ptr() == bad:
            raise error
        return measure(self, name, model, first, stop)

    bad = evaluator.composer.compose(plans[0]).base_model.layers[1].mlp.up_proj.weight.data_ptr()
    monkeypatch.setattr(Repetition, "measure", fails)
    outcomes = evaluator.score(plans)
    assert outcomes[0].cause is not None
    assert outcomes[0].cause.endswith(cause)
    same = [child.slots[1] == plans[0].slots[1] for child in plans]
    assert not all(same)
    for failed, outcome, unbroken in zip(same, outcomes, expected, strict=True):
        assert failed == (outcome.cause is not None)
        assert failed or outcome.scores == unbroken.scores


def test_a_dropped_candidate_has_an_estimate_though_all_others_failed(
    loaded: Family, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What beat it failed later: its own loss, extrapolated, is all there is to tell."""
    plans = generation_of(loaded, 3, 8)
    measure = Repetition.measure

    def fails(self: Repetition, name: str, model: Any, first: int, stop: int) -> Any:
        if stop == 9:
            raise ValueError("late")
        return measure(self, name, model, first, stop)

    monkeypatch.setattr(Repetition, "measure", fails)
    raced = evaluator.score(plans, Race(1, WEIGHTS, certainty=0.5))
    dropped = [outcome for outcome in raced if outcome.cause is None]
    assert 0 < len(dropped) < len(plans)
    for outcome in dropped:
        assert outcome.units is None
        assert outcome.estimate == pytest.approx(loss(outcome))


def test_layers_streamed_from_the_host_give_the_same_scores(loaded: Family, evaluator: Evaluator) -> None:
    plans = generation_of(loaded, 1, 4)
    expected = [outcome.scores for outcome in evaluator.score(plans)]
    bank = evaluator.composer._bank
    bank.on_host, bank._cache_bytes = True, 1
    assert evaluator.composer.streams
    assert [outcome.scores for outcome in evaluator.score(plans)] == expected


def test_without_batches_there_are_all_rungs(loaded: Family, texts: dict[str, str], tokenizer: Any) -> None:
    """What is measured on models alone takes part in each rung, too."""
    sources = {name: TextSource(file) for name, file in texts.items()}
    only = repetition(
        "repetition", sources, tokenizer, prompts=16, prompt_tokens=4, new_tokens=8, batch_size=2
    )
    evaluator = evaluator_of(loaded, [only])
    assert [len(rung) for rung in evaluator.passes.rungs] == [0, 0, 0, 0]
    plans = generation_of(loaded, 3, 8)
    raced = evaluator.score(plans, Race(1, {"repetition": 1.0}, certainty=0.1))
    counts = [outcome.scores["repetition"]["stories"].count for outcome in raced]
    assert max(counts) == 16
    assert {outcome.estimate is None for outcome in raced} == {True, False}
    left = {count for count, outcome in zip(counts, raced, strict=True) if outcome.estimate is not None}
    assert left <= {2, 4, 8}


@pytest.mark.parametrize(
    ("batch", "expected"), [(1, [2, 3, 5, 10]), (2, [2, 4, 6, 10]), (4, [4, 4, 8, 10]), (16, [10] * 4)]
)
def test_rungs_take_whole_batches_of_what_is_measured_on_models(batch: int, expected: list[int]) -> None:
    """They take little more time than a single unit does."""
    assert [UnitSet("s", "d", 10, batch=batch).units_until(share) for share in RUNGS] == expected


def test_rungs_and_shares_go_together(evaluator: Evaluator) -> None:
    with pytest.raises(ValueError, match="4 rungs for 1 shares; layout makes one for each"):
        Passes(evaluator.passes.objectives, evaluator.passes.rungs, (1.0,))


def test_what_has_no_weight_is_not_raced_on(loaded: Family, evaluator: Evaluator) -> None:
    """It is measured all the same."""
    plans = generation_of(loaded, 3, 4)
    raced = evaluator.score(plans, Race(4, {"margin": 1.0}))
    assert [outcome.scores for outcome in raced] == [outcome.scores for outcome in evaluator.score(plans)]
    for outcome in raced:
        assert outcome.units is not None
        assert [len(units) for units in outcome.units.values()] == [12]
