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
    one = TokenSet("t", tuple(torch.arange(length) for _ in range(sequences)), "digest")
    return SimpleNamespace(objectives=[Perplexity("perplexity", (one,))])


def measured(values: np.ndarray[Any, Any]) -> Any:
    half = len(values) // 2
    return {("perplexity", "t"): [values[:half], values[half:]]}


def test_the_gap_is_in_the_units_that_users_see() -> None:
    searched, held_out = np.full(40, np.log(2.0)), np.full(80, np.log(3.0))
    found = gap(PAIR, (passes(10), measured(searched)), (passes(20), measured(held_out)), seed=0)
    assert found.searched == pytest.approx(2.0)
    assert found.held_out == pytest.approx(3.0)
    assert (found.difference, found.low, found.high) == pytest.approx((-1.0, -1.0, -1.0))


def test_the_interval_holds_the_true_gap_as_often_as_it_says() -> None:
    """Tokens of a sequence are alike, so that an interval over tokens would be too narrow."""
    rng = np.random.RandomState(0)
    covered = 0
    for trial in range(100):
        levels = [rng.normal(size=(60, 1)) + 0.1 * rng.normal(size=(60, 4)) for _ in range(2)]
        one, other = (measured(1.0 + 0.1 * level.ravel()) for level in levels)
        found = gap(PAIR, (passes(60), one), (passes(60), other), seed=trial)
        covered += found.low <= 0 <= found.high
    assert 88 <= covered <= 100


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.RandomState(1)
    values = measured(rng.uniform(size=40)), measured(rng.uniform(size=40))
    one, same, other = (
        gap(PAIR, (passes(10), values[0]), (passes(10), values[1]), seed=s) for s in (1, 1, 2)
    )
    assert one == same != other
