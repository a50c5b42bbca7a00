"""The gap between search scores and held-out scores, and its interval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.scoring.gap import Pair, gap

PAIR = Pair("perplexity", "perplexity", ("t",))


def passes(sequences: int, length: int = 5) -> Any:
    token_set = TokenSet("t", tuple(torch.arange(length) for _ in range(sequences)), "digest")
    return SimpleNamespace(objectives=[Perplexity("perplexity", (token_set,))])


def measured(values: np.ndarray[Any, Any]) -> Any:
    half = len(values) // 2
    return {("perplexity", "t"): [values[:half], values[half:]]}


def test_the_gap_is_in_the_units_that_users_see() -> None:
    searched, held_out = np.full(40, np.log(2.0)), np.full(80, np.log(3.0))
    result = gap(PAIR, (passes(10), measured(searched)), (passes(20), measured(held_out)), seed=0)
    assert result.searched == pytest.approx(2.0)
    assert result.held_out == pytest.approx(3.0)
    assert (result.difference, result.low, result.high) == pytest.approx((-1.0, -1.0, -1.0))


def test_the_interval_holds_the_true_gap_as_often_as_it_says() -> None:
    """Tokens of a sequence are alike, so that an interval over tokens would be too narrow."""
    rng = np.random.RandomState(0)
    covered = 0
    for trial in range(100):
        levels = [rng.normal(size=(60, 1)) + 0.1 * rng.normal(size=(60, 4)) for _ in range(2)]
        first, second = (measured(1.0 + 0.1 * level.ravel()) for level in levels)
        result = gap(PAIR, (passes(60), first), (passes(60), second), seed=trial)
        covered += result.low <= 0 <= result.high
    assert 88 <= covered <= 100


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.RandomState(1)
    values = measured(rng.uniform(size=40)), measured(rng.uniform(size=40))
    first, again, another = (
        gap(PAIR, (passes(10), values[0]), (passes(10), values[1]), seed=s) for s in (1, 1, 2)
    )
    assert first == again != another
