"""Every kind of objective keeps the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.texts import TextSource, TokenSet
from gptailor_merge.objectives.kl import build_kl
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import Objective, Prediction
from gptailor_merge.objectives.registry import BUILT_IN
from gptailor_merge.objectives.repetition import repetition
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.task import objective_of
from gptailor_merge.objectives.tasks.task_items import TaskSettings, load_items
from gptailor_merge.scoring.passes import predictions_alone
from gptailor_merge.testing.objectives import (
    KindContract,
    Make,
    ObjectiveContract,
)

CPU = torch.device("cpu")


def token_set(name: str, seed: int) -> TokenSet:
    ids = torch.randint(0, 60, (9, 6), generator=torch.Generator().manual_seed(seed))
    return TokenSet(name, tuple(ids), f"digest {seed}")


@dataclass
class Material:
    """Model, tokenizer and tasks for objectives made by hand."""

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
