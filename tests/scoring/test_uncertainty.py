"""Standard errors of scores."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.metrics import mean_stderr

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.scores import Score
from gptailor_merge.scoring.uncertainty import standard_error, with_errors


def alike(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Observations that count one each."""
    return np.stack([values, np.ones(len(values))], axis=-1)


def test_of_items_it_is_lm_evals() -> None:
    right = np.random.RandomState(0).randint(2, size=37).astype(float)
    assert standard_error(alike(right)) == pytest.approx(mean_stderr(list(right)))


def test_one_observation_has_none_and_equal_ones_have_no_error() -> None:
    assert standard_error(alike(np.array([3.0]))) is None
    assert standard_error(np.array([[3.0, 1.0], [6.0, 2.0]])) == 0.0


def test_of_a_ratio_it_is_that_of_many_draws() -> None:
    """Documents of different length: sums of units over words."""
    rng = np.random.RandomState(1)
    words = rng.randint(20, 60, size=(4000, 80)).astype(float)
    units = words * rng.normal(3.0, 0.5, size=words.shape)
    ratios = units.sum(axis=1) / words.sum(axis=1)
    errors = [
        standard_error(np.stack([u, w], axis=-1)) for u, w in zip(units[:200], words[:200], strict=True)
    ]
    assert np.mean(np.array(errors, dtype=float)) == pytest.approx(ratios.std(), rel=0.05)


def test_tokens_of_a_sequence_are_one_observation() -> None:
    """Sequences of 5 tokens predict 4; all tokens of one are alike, so that more of them tell no more."""
    levels = np.array([1.0, 2.0, 3.0, 6.0])
    token_set = TokenSet("t", tuple(torch.arange(5) for _ in levels), "digest")
    passes: Any = SimpleNamespace(objectives=[Perplexity("p", (token_set,))])
    values = np.repeat(levels, 4)
    score = Score(float(values.mean()), 16, "perplexity")
    passes.scores = lambda measured: {"p": {"t": score}}
    (by_set,) = with_errors(passes, {("p", "t"): [values[:8], values[8:]]}).values()
    assert by_set["t"] == score
    assert by_set["t"].error == pytest.approx(mean_stderr(list(levels)))


def test_the_error_of_a_total_is_that_of_a_stratified_sample() -> None:
    total = Score.total([Score(1.0, 10, error=0.3), Score(2.0, 30, error=0.1)])
    assert total.error == pytest.approx(math.hypot(0.25 * 0.3, 0.75 * 0.1))
    assert Score.total([Score(1.0, 10, error=0.3), Score(2.0, 30)]).error is None


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("plain", 0.1),
        ("negated", 0.1),
        ("bits", 0.1 / math.log(2)),
        ("perplexity", math.exp(2) * math.sinh(0.1)),
    ],
)
def test_users_see_the_error_in_the_units_of_the_score(unit: str, expected: float) -> None:
    assert Score(2.0, 5, unit, 0.1).natural_error == pytest.approx(expected)
    assert Score(2.0, 5, unit).natural_error is None
