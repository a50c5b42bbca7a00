from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.publish.materialize import materialize
from gptailor_merge.recipe.check import check_with_family
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.calibration import TextSource, load_tokenizer, tokenize
from gptailor_merge.scoring.evaluator import Batched, Evaluator, forward
from gptailor_merge.scoring.objectives import Perplexity, build_kl
from tests.conftest import recipe_of

CPU = torch.device("cpu")


@pytest.fixture
def parts(family: dict[str, str], texts: dict[str, str]):  # type: ignore[no-untyped-def]
    """A recipe, its plan, an evaluator with both objectives, and the token sets."""
    recipe = Recipe.from_mapping(recipe_of(family, dtype="float32", out_dtype="float32"))
    plan, loaded = check_with_family(recipe)
    tokenizer = load_tokenizer(loaded.base.directory)
    sets = tuple(
        tokenize(n, TextSource(f), tokenizer, tokens=128, sequence_length=16) for n, f in texts.items()
    )
    base = AutoModelForCausalLM.from_pretrained(family["base"], dtype=torch.float32)
    teachers = {s.name: ("base", lambda ids: forward(base, ids)) for s in sets}
    objectives = [
        Perplexity("perplexity", sets),
        build_kl("kl", sets, teachers=teachers, top_k=16, batch_tokens=64),
    ]
    composer = Composer(Bank(loaded, Precision.of("float32", "float32", torch.float32)))
    return recipe, plan, Evaluator(composer, objectives, device=CPU, batch_tokens=64), sets, objectives


def test_scores_are_those_of_the_written_model(parts, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe, plan, evaluator, sets, objectives = parts
    (outcome,) = evaluator.score([plan])
    assert outcome.cause is None
    assert outcome.tokens == 256
    materialize(recipe, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert Batched(objectives, device=CPU, batch_tokens=64).score(written) == outcome.scores
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
    _, plan, evaluator, _, objectives = parts
    monkeypatch.setattr(evaluator._composer, "compose", lambda plan: 1 / 0)
    (outcome,) = evaluator.score([plan])
    assert (outcome.cause, outcome.scores, outcome.tokens) == ("ZeroDivisionError: division by zero", {}, 0)
    monkeypatch.undo()
    monkeypatch.setattr(type(objectives[0]), "score_batch", lambda *_: math.nan)
    (outcome,) = evaluator.score([plan])
    assert outcome.cause == "perplexity on stories is nan, not a finite number"


def test_a_generation_scores_as_its_members_do_alone(parts) -> None:  # type: ignore[no-untyped-def]
    _, plan, evaluator, *_ = parts
    plans = [replace(plan, slots=plan.slots[:n]) for n in (4, 2, 3, 4, 1)]
    before = evaluator.layer_tokens
    together = [outcome.scores for outcome in evaluator.score(plans)]
    assert evaluator.layer_tokens - before == 4 * evaluator.objectives.tokens
    assert together == [next(evaluator.score([one])).scores for one in plans]


def test_a_failure_concerns_one_candidate_of_a_generation(  # type: ignore[no-untyped-def]
    parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan, evaluator, *_ = parts
    (alone,) = evaluator.score([plan])
    compose = evaluator._composer.compose
    monkeypatch.setattr(evaluator._composer, "compose", lambda p: compose(p) if len(p.slots) == 4 else 1 / 0)
    good, bad, again = evaluator.score([plan, replace(plan, slots=plan.slots[:2]), plan])
    assert good.scores == again.scores == alone.scores
    assert bad.cause == "ZeroDivisionError: division by zero"
