"""Repetition is that of the greedy continuation, however prompts are put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig

from gptailor_merge.calibration.texts import TextSource
from gptailor_merge.errors import DataError
from gptailor_merge.objectives.repetition import Repetition, repeated, repetition
from gptailor_merge.planning.resolve import plan
from tests.objectives.tasks.test_likelihood import evaluator_of, family_of, recipes_of
from tests.objectives.tasks.test_likelihood import member as member
from tests.objectives.tasks.test_likelihood import tokenizer as tokenizer

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4], 0.0),
        ([1] * 10, 1 - 1 / 7),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 - 4 / 5),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4], 1 - 5 / 6),
        ([1, 2, 3, 9, 1, 2, 3, 8], 0.0),
    ],
)
def test_repeated_is_the_share_of_n_grams_that_have_been_there(ids: list[int], expected: float) -> None:
    assert repeated(ids) == pytest.approx(expected)


@given(st.lists(st.integers(0, 2), min_size=4, max_size=30))
def test_repeated_counts_each_n_gram_after_its_first(ids: list[int]) -> None:
    grams = [tuple(ids[n : n + 4]) for n in range(len(ids) - 3)]
    again = sum(gram in grams[:n] for n, gram in enumerate(grams))
    assert repeated(ids) == pytest.approx(again / len(grams))


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, TextSource]:
    """Two sources; some documents are short, and one is empty."""
    texts = {"letters": ["ABCDEFGH", "", "XYZXYZXYZ", "AB", "HELLO THERE"], "sums": ["1+1=2", "2+2=4"]}
    sources = {}
    for name, documents in texts.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f'{{"text": "{text}"}}\n' for text in documents))
        sources[name] = TextSource(str(file))
    return sources


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_repetition_is_of_the_greedy_continuation(
    name: str, prompts: dict[str, TextSource], tokenizer: Any, tmp_path: Path
) -> None:
    """It is what a model without a KV cache writes, token by token, past the end of the text."""
    loaded = family_of(tmp_path, name)
    objective = repetition("repetition", prompts, tokenizer, prompts=4, prompt_tokens=5, new_tokens=12)
    evaluator = evaluator_of(loaded, [objective])
    plans = [plan(recipe) for recipe in recipes_of(loaded, 3)]
    outcomes = evaluator.score(plans)
    for candidate, outcome in zip(plans, outcomes, strict=True):
        model = evaluator.composer.compose(candidate)
        for source, ids in objective.prompts.items():
            shares = [repeated(continued(model, list(prompt), 12)) for prompt in ids]
            score = outcome.scores["repetition"][source]
            assert score.mean == score.natural == pytest.approx(sum(shares) / len(shares))
            assert score.count == len(ids)
    assert [len(ids) for ids in objective.prompts["letters"]] == [5, 5, 2, 5]
    assert [units.units for units in objective.sets] == [4, 2]


def continued(model: Any, ids: list[int], tokens: int) -> list[int]:
    with torch.inference_mode():
        for _ in range(tokens):
            ids = [*ids, int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids[-tokens:]


def test_repetition_does_not_depend_on_batches_nor_on_the_models_own_settings(
    prompts: dict[str, TextSource], tokenizer: Any, member: Path
) -> None:
    def measured(model: Any, batch_size: int) -> list[float]:
        objective = repetition("r", prompts, tokenizer, prompt_tokens=5, new_tokens=12, batch_size=batch_size)
        return [*objective.measure("letters", model, 0, 1), *objective.measure("letters", model, 1, 4)]

    model = AutoModelForCausalLM.from_pretrained(member, dtype=torch.float32)
    expected = measured(model, 16)
    assert measured(model, 1) == expected
    assert len(set(expected)) > 1
    settings = GenerationConfig(
        do_sample=True, repetition_penalty=9.0, eos_token_id=list(range(60)), max_new_tokens=1
    )
    model.generation_config = settings
    assert measured(model, 16) == expected
    assert model.generation_config is settings


def test_what_repetition_depends_on(prompts: dict[str, TextSource], tokenizer: Any) -> None:
    def build(**options: Any) -> Repetition:
        return repetition("r", prompts, tokenizer, **{"prompt_tokens": 5, "new_tokens": 12, **options})

    assert build().fingerprint == build(batch_size=2).fingerprint
    versions = [build(), build(new_tokens=13), build(prompt_tokens=4), build(prompts=1)]
    assert len({version.fingerprint for version in versions}) == 4
    assert build(prompts=2).sets[0].documents == {"ABCDEFGH", "XYZXYZXYZ"}


def test_a_source_without_documents_is_named(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"empty.jsonl: no documents; nothing can be continued"):
        repetition("r", {"s": TextSource(str(file))}, tokenizer)
