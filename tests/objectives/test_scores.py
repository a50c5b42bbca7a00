"""Scores are means, seen by users in natural units."""

from __future__ import annotations

import math

import pytest

from gptailor_merge.objectives.scores import Score


def test_totals_weigh_by_tokens() -> None:
    assert Score.total([Score(1.0, 10), Score(4.0, 30)]) == Score(3.25, 40)
    assert Score(math.log(7.0), 1, "perplexity").natural == pytest.approx(7.0)
