from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from gptailor_merge.scoring.batching import Batch, Segment, layout
from gptailor_merge.scoring.calibration import TokenSet
from gptailor_merge.scoring.objectives import (
    Objective,
    Perplexity,
    Prediction,
    Score,
    build_kl,
    kl_divergence,
    log_likelihood,
    reference,
)

IDS = torch.arange(12).reshape(2, 6) % 9


def logits(seed: int, vocabulary: int = 40, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed))


def predicted(made: torch.Tensor) -> Prediction:
    rows = range(len(made))
    return Prediction.of(Segment("digest", rows, rows), IDS[: len(made), 1 : 1 + made.shape[1]], made)


def kl(p: torch.Tensor, q: torch.Tensor, top_k: int) -> float:
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
    assert kl(logits(1), logits(1), top_k) == 0.0


def test_kl_over_the_whole_vocabulary_is_exact() -> None:
    assert kl(logits(1), logits(2), 40) == pytest.approx(full_kl(logits(1), logits(2)), rel=1e-5)


@given(st.integers(0, 99), st.integers(1, 39))
def test_kl_of_the_top_is_a_lower_bound_that_grows(seed: int, top_k: int) -> None:
    p, q = logits(seed), logits(seed + 1000)
    coarse, finer = kl(p, q, top_k), kl(p, q, top_k + 1)
    assert -1e-4 <= coarse <= finer + 1e-3
    assert finer <= full_kl(p, q) + 1e-3


def test_a_reference_that_is_sure_of_itself_gives_finite_numbers() -> None:
    sure = torch.zeros(1, 3, 40)
    sure[..., 0] = 1000.0
    assert math.isfinite(kl(sure, torch.zeros(1, 3, 40), 4))
    assert math.isfinite(kl(torch.zeros(1, 3, 40), sure, 4))


def test_totals_weigh_by_tokens() -> None:
    assert Score.total([Score(1.0, 10), Score(4.0, 30)]) == Score(3.25, 40)
    assert Score(math.log(7.0), 1, "perplexity").natural == pytest.approx(7.0)


def token_set(name: str, seed: int) -> TokenSet:
    ids = torch.randint(0, 9, (3, 6), generator=torch.Generator().manual_seed(seed))
    return TokenSet(name, tuple(ids), f"digest {seed}")


def make_perplexity(sets: tuple[TokenSet, ...], batch_tokens: int) -> Objective:
    return Perplexity("perplexity", sets)


def forward(batch: Batch) -> Iterator[Prediction]:
    """A model that is fairly sure that each token is repeated."""
    for segment in batch.segments:
        ids = batch.ids[segment.at.start : segment.at.stop]
        yield Prediction.of(segment, ids[:, 1:], functional.one_hot(ids[:, :-1], 9).float())


def rungs(sets: tuple[TokenSet, ...], batch_tokens: int) -> list[Batch]:
    made = layout(sets, batch_tokens, device=torch.device("cpu"))
    return [batch for rung in made for batch in rung]


def make_kl(sets: tuple[TokenSet, ...], batch_tokens: int) -> Objective:
    def teacher(batch: Batch) -> Iterator[Prediction]:
        for segment, next_ids, logits, *_ in forward(batch):
            yield Prediction.of(segment, next_ids, 2 * logits)

    teachers = {s.name: ("teacher", teacher) for s in sets}
    return build_kl("kl", sets, teachers=teachers, top_k=4, batches=rungs(sets, batch_tokens))


@pytest.mark.parametrize("make", [make_perplexity, make_kl])
class TestContract:
    """What every objective promises."""

    def test_the_fingerprint_is_of_the_data(self, make) -> None:  # type: ignore[no-untyped-def]
        one, same, other = (make((token_set("t", seed),), 64).fingerprint for seed in (1, 1, 2))
        assert one == same != other

    def test_each_token_has_one_value_however_batches_are_cut(self, make) -> None:  # type: ignore[no-untyped-def]
        found = []
        for batch_tokens in (6, 64):
            sets = (token_set("t", 1),)
            objective = make(sets, batch_tokens)
            values = {}
            for batch in rungs(sets, batch_tokens):
                for prediction in forward(batch):
                    made = objective.values("t", prediction)
                    values.update(zip(prediction.segment.rows, made, strict=True))
            found.append(torch.stack([values[row] for row in range(3)]))
        assert found[0].shape == (3, 5)
        assert torch.equal(*found)

    def test_lower_is_better(self, make) -> None:  # type: ignore[no-untyped-def]
        assert make((token_set("t", 1),), 64).direction == "minimize"
