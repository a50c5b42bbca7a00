"""KL divergence to stored predictions: exact over the whole vocabulary, and a lower bound below it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from gptailor_merge.calibration.batches import RUNGS, Segment
from gptailor_merge.objectives.kinds import Context
from gptailor_merge.objectives.kl import kl_divergence, reference
from gptailor_merge.objectives.protocols import Prediction, log_likelihood
from gptailor_merge.scoring.passes import predictions_alone
from gptailor_merge.testing.objectives import KindContract, built, config_of, layered

IDS = torch.arange(12).reshape(2, 6) % 9


def logits(seed: int, vocabulary: int = 40, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed))


def predicted(scores: torch.Tensor) -> Prediction:
    rows = range(len(scores))
    return Prediction.of(Segment("digest", rows, rows), IDS[: len(scores), 1 : 1 + scores.shape[1]], scores)


def kl_of(p: torch.Tensor, q: torch.Tensor, top_k: int) -> float:
    return float(kl_divergence(reference(predicted(p), top_k), predicted(q)).double().sum())


def full_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    log_p, log_q = (functional.log_softmax(x.double(), -1) for x in (p, q))
    return float((log_p.exp() * (log_p - log_q)).sum())


def test_likelihood_is_of_the_next_token() -> None:
    values = -log_likelihood(predicted(logits(1)))
    for row, ids, value in zip(logits(1), IDS, values, strict=True):
        for position in range(5):
            expected = -float(functional.log_softmax(row[position], -1)[ids[position + 1]])
            assert float(value[position]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


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
