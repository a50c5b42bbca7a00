from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from gptailor_merge.scoring.calibration import TokenSet
from gptailor_merge.scoring.objectives import (
    Objective,
    Perplexity,
    Score,
    build_kl,
    kl_divergence,
    negative_log_likelihood,
    reference,
)

IDS = torch.arange(12).reshape(2, 6) % 9


def logits(seed: int, vocabulary: int = 40, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, 6, vocabulary, generator=torch.Generator().manual_seed(seed))


def full_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    log_p, log_q = (functional.log_softmax(x[:, :-1].double(), -1) for x in (p, q))
    return float((log_p.exp() * (log_p - log_q)).sum())


def test_likelihood_is_of_the_next_token() -> None:
    expected = 0.0
    for row, ids in zip(logits(1), IDS, strict=True):
        for position in range(5):
            expected -= float(functional.log_softmax(row[position], -1)[ids[position + 1]])
    assert negative_log_likelihood(IDS, logits(1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("top_k", [1, 8, 39, 40, 99])
def test_kl_of_a_model_with_itself_is_zero(top_k: int) -> None:
    assert kl_divergence(reference(logits(1), top_k), logits(1)) == 0.0


def test_kl_over_the_whole_vocabulary_is_exact() -> None:
    assert kl_divergence(reference(logits(1), 40), logits(2)) == pytest.approx(
        full_kl(logits(1), logits(2)), rel=1e-5
    )


@given(st.integers(0, 99), st.integers(1, 39))
def test_kl_of_the_top_is_a_lower_bound_that_grows(seed: int, top_k: int) -> None:
    p, q = logits(seed), logits(seed + 1000)
    coarse, finer = (kl_divergence(reference(p, k), q) for k in (top_k, top_k + 1))
    assert -1e-4 <= coarse <= finer + 1e-3
    assert finer <= full_kl(p, q) + 1e-3


def test_a_reference_that_is_sure_of_itself_gives_finite_numbers() -> None:
    sure = torch.zeros(1, 3, 40)
    sure[..., 0] = 1000.0
    assert math.isfinite(kl_divergence(reference(sure, 4), torch.zeros(1, 3, 40)))
    assert math.isfinite(kl_divergence(reference(torch.zeros(1, 3, 40), 4), sure))


def test_totals_weigh_by_tokens() -> None:
    assert Score.total([Score(1.0, 10), Score(4.0, 30)]) == Score(3.25, 40)
    assert Score(math.log(7.0), 1).perplexity == pytest.approx(7.0)


def token_set(name: str, seed: int) -> TokenSet:
    ids = torch.randint(0, 9, (3, 6), generator=torch.Generator().manual_seed(seed))
    return TokenSet(name, tuple(ids), f"digest {seed}")


def make_perplexity(sets: tuple[TokenSet, ...], batch_tokens: int) -> Objective:
    return Perplexity("perplexity", sets)


def make_kl(sets: tuple[TokenSet, ...], batch_tokens: int) -> Objective:
    def teacher(ids: torch.Tensor) -> torch.Tensor:
        return functional.one_hot(ids, 9).float()

    teachers = {s.name: ("teacher", teacher) for s in sets}
    return build_kl("kl", sets, teachers=teachers, top_k=4, batch_tokens=batch_tokens)


@pytest.mark.parametrize("make", [make_perplexity, make_kl])
class TestContract:
    """What every objective promises."""

    def test_the_fingerprint_is_of_the_data(self, make) -> None:  # type: ignore[no-untyped-def]
        one, same, other = (make((token_set("t", seed),), 64).fingerprint for seed in (1, 1, 2))
        assert one == same != other

    def test_batches_add_up(self, make) -> None:  # type: ignore[no-untyped-def]
        sums = []
        for batch_tokens in (6, 64):
            objective = make((token_set("t", 1),), batch_tokens)
            total = 0.0
            for index, ids in enumerate(objective.sets[0].batches(batch_tokens)):
                total += objective.score_batch("t", index, ids, 0.5 * functional.one_hot(ids, 9).float())
            sums.append(total)
        assert sums[0] == pytest.approx(sums[1], rel=1e-6)

    def test_lower_is_better(self, make) -> None:  # type: ignore[no-untyped-def]
        assert make((token_set("t", 1),), 64).direction == "minimize"
