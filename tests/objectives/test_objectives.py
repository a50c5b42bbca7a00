from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import RUNGS, Batch, Segment, layout
from gptailor_merge.calibration.texts import TextSource, TokenSet
from gptailor_merge.objectives.kinds import Context
from gptailor_merge.objectives.kl import build_kl, kl_divergence, reference
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import Objective, Prediction, log_likelihood
from gptailor_merge.objectives.registry import BUILT_IN
from gptailor_merge.objectives.repetition import repetition
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.task import objective_of
from gptailor_merge.objectives.tasks.task_items import TaskSettings, load_items
from gptailor_merge.scoring.passes import predictions_alone
from gptailor_merge.testing.objectives import (
    KindContract,
    Make,
    ObjectiveContract,
    built,
    config_of,
    layered,
)

CPU = torch.device("cpu")
IDS = torch.arange(12).reshape(2, 6) % 9


def logits(seed: int, vocabulary: int = 40, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed))


def predicted(made: torch.Tensor) -> Prediction:
    rows = range(len(made))
    return Prediction.of(Segment("digest", rows, rows), IDS[: len(made), 1 : 1 + made.shape[1]], made)


def kl_of(p: torch.Tensor, q: torch.Tensor, top_k: int) -> float:
    return float(kl_divergence(reference(predicted(p), top_k), predicted(q)).double().sum())


def full_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    log_p, log_q = (functional.log_softmax(x.double(), -1) for x in (p, q))
    return float((log_p.exp() * (log_p - log_q)).sum())


def test_likelihood_is_of_the_next_token() -> None:
    values = -log_likelihood(predicted(logits(1)))
    for row, ids, found in zip(logits(1), IDS, values, strict=True):
        for position in range(5):
            expected = -float(functional.log_softmax(row[position], -1)[ids[position + 1]])
            assert float(found[position]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("top_k", [1, 8, 39, 40, 99])
def test_kl_of_a_model_with_itself_is_zero(top_k: int) -> None:
    assert kl_of(logits(1), logits(1), top_k) == 0.0


def test_kl_over_the_whole_vocabulary_is_exact() -> None:
    assert kl_of(logits(1), logits(2), 40) == pytest.approx(full_kl(logits(1), logits(2)), rel=1e-5)


@given(st.integers(0, 99), st.integers(1, 39))
def test_kl_of_the_top_is_a_lower_bound_that_grows(seed: int, top_k: int) -> None:
    p, q = logits(seed), logits(seed + 1000)
    coarse, finer = kl_of(p, q, top_k), kl_of(p, q, top_k + 1)
    assert -1e-4 <= coarse <= finer + 1e-3
    assert finer <= full_kl(p, q) + 1e-3


def test_a_reference_that_is_sure_of_itself_gives_finite_numbers() -> None:
    sure = torch.zeros(1, 3, 40)
    sure[..., 0] = 1000.0
    assert math.isfinite(kl_of(sure, torch.zeros(1, 3, 40), 4))
    assert math.isfinite(kl_of(torch.zeros(1, 3, 40), sure, 4))


def test_totals_weigh_by_tokens() -> None:
    assert Score.total([Score(1.0, 10), Score(4.0, 30)]) == Score(3.25, 40)
    assert Score(math.log(7.0), 1, "perplexity").natural == pytest.approx(7.0)


def token_set(name: str, seed: int) -> TokenSet:
    ids = torch.randint(0, 60, (9, 6), generator=torch.Generator().manual_seed(seed))
    return TokenSet(name, tuple(ids), f"digest {seed}")


@dataclass
class Material:
    """What objectives are made of."""

    model: PreTrainedModel
    tokenizer: Any
    lm: Any
    tasks: Path

    @property
    def texts(self) -> TextSource:
        file = self.tasks / "texts.jsonl"
        file.write_text("".join(f'{{"text": "{letter * 3}XYZ"}}\n' for letter in "ABCDEFGHI"))
        return TextSource(str(file))


def perplexity(material: Material, seed: int) -> Objective:
    return Perplexity("perplexity", (token_set("t", seed), token_set("u", seed + 10)))


def kl(material: Material, seed: int) -> Objective:
    def teacher(batch: Batch) -> Iterator[Prediction]:
        for segment, next_ids, logits, *_ in predictions_alone(material.model, batch):
            yield Prediction.of(segment, next_ids, 2 * logits)

    sets = (token_set("t", seed),)
    batches = [batch for rung in layout(sets, 64, device=CPU) for batch in rung]
    return build_kl("kl", sets, teachers={"t": ("teacher", teacher)}, top_k=4, batches=batches)


def task(name: str, metric: str | None) -> Callable[[Material, int], Objective]:
    def make(material: Material, seed: int) -> Objective:
        items = load_items(TaskSettings((name,), material.tasks, limit=9, seed=seed), material.lm)
        return objective_of(items, metric, trees=True, lm=material.lm, batch_size=2)

    return make


def repeats(material: Material, seed: int) -> Objective:
    sizes = {"prompts": 9 - seed, "prompt_tokens": 3, "new_tokens": 8, "batch_size": 2}
    return repetition("r", {"s": material.texts}, material.tokenizer, **sizes)


KINDS: dict[str, Callable[[Material, int], Objective]] = {
    "perplexity": perplexity,
    "kl": kl,
    "choice": task("tiny_choice", "acc"),
    "margin": task("tiny_choice", "margin"),
    "rolling": task("tiny_rolling", None),
    "loglikelihood": task("tiny_loglikelihood", None),
    "generation": task("tiny_generation", None),
    "repetition": repeats,
}
"""Objectives measured on predictions or on models; another seed, other data."""


def on_texts(kind: str, **keys: Any) -> Any:
    return lambda texts, tasks: (
        {"kind": kind, "data": texts, "tokens": 64, "sequence_length": 16, **keys},
        {"tokens": 48},
    )


def on_task(name: str, **keys: Any) -> Any:
    return lambda texts, tasks: (
        {"kind": "task", "tasks": [name], "include_path": str(tasks), "limit": 9, **keys},
        {"limit": 8},
    )


def costing(kind: str, changed: Any) -> Any:
    return lambda texts, tasks: ({"kind": kind}, changed)


DOCUMENTS = {
    "kl": on_texts("kl", top_k=4),
    "perplexity": on_texts("perplexity"),
    "choice": on_task("tiny_choice", metric="acc"),
    "margin": on_task("tiny_choice", metric="margin"),
    "rolling": on_task("tiny_rolling"),
    "loglikelihood": on_task("tiny_loglikelihood"),
    "generation": on_task("tiny_generation"),
    "repetition": lambda texts, tasks: (
        {"kind": "repetition", "data": texts, "prompts": 9, "prompt_tokens": 3, "new_tokens": 8},
        {"prompts": 8},
    ),
    "parameters": costing("parameters", None),
    "bytes": costing("bytes", None),
    "kv_cache": costing("kv_cache", {"tokens": 9}),
    "prefill_latency": costing("prefill_latency", {"tokens": 9}),
    "decode_latency": costing("decode_latency", {"tokens": 9}),
}
"""Each kind as a search config has it, and keys that change what is measured."""


# lm-eval and what it imports warn of their own deprecations.
@pytest.mark.filterwarnings("ignore")
class TestObjectives(ObjectiveContract):
    """Objectives made by hand keep the contract, also where few units go together."""

    @pytest.fixture(params=KINDS.values(), ids=KINDS)
    def make(self, request: Any, model: Any, tokenizer: Any, directory: Path, tasks: Path) -> Make:
        material = Material(model, tokenizer, encoder(directory, tokenizer), tasks)
        return lambda version: request.param(material, version)


@pytest.mark.filterwarnings("ignore")
class TestKinds(KindContract):
    """Every built-in kind keeps the contract."""

    @pytest.fixture(params=DOCUMENTS.values(), ids=DOCUMENTS)
    def documents(self, request: Any, texts: dict[str, str], tasks: Path) -> Any:
        return request.param(texts, tasks)

    @pytest.fixture
    def document(self, documents: Any) -> dict[str, Any]:
        return {**documents[0]}

    @pytest.fixture
    def changed(self, documents: Any) -> dict[str, Any] | None:
        return {**documents[0], **documents[1]} if documents[1] else None


def test_every_built_in_kind_is_under_contract() -> None:
    kinds = {document({}, Path())[0]["kind"] for document in DOCUMENTS.values()}
    assert kinds == set(BUILT_IN)


class TestKL(KindContract):
    """A model has no divergence from itself."""

    @pytest.fixture
    def document(self, texts: dict[str, str]) -> dict[str, Any]:
        return {"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16, "top_k": 4}

    @pytest.fixture
    def changed(self, document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "top_k": 5}

    def test_of_the_teacher_it_is_zero(self, document: dict[str, Any], context: Context, model: Any) -> None:
        def teacher(name: str) -> tuple[str, Any]:
            return name, lambda batch: predictions_alone(model, batch)

        objective = built(config_of(document), replace(context, teacher=teacher))
        scores = layered(objective, 64, RUNGS).score(model)["kl"]
        assert {name: score.mean for name, score in scores.items()} == {"stories": 0.0, "sums": 0.0}
