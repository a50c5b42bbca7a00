"""Scores as JSON text, which a journal holds of every candidate and of every model that is held out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from gptailor_merge.objectives.scores import UNITS, Score, Scores


def dump_scores(scores: Scores) -> str:
    """Writes scores as objective -> set -> [mean, count, unit, and a standard error where it is known]."""
    return json.dumps({o: {n: _written(s) for n, s in by.items()} for o, by in scores.items()})


def load_scores(text: str) -> Scores:
    """Reads scores, and refuses what `dump_scores` does not write.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: the text holds something else.
    """
    stored: Mapping[str, Mapping[str, Any]] = json.loads(text)
    scores = {o: {n: Score(*score) for n, score in by.items()} for o, by in stored.items()}
    for by_set in scores.values():
        for score in by_set.values():
            if score.unit not in UNITS:
                raise ValueError(f"a score in {score.unit!r}")
            for number in (score.mean, score.count, score.error or 0.0):
                math.isnan(number)  # raises a TypeError where it is no number
            if not score.count > 0:
                raise ValueError("a score over nothing")
        if not by_set:
            raise ValueError("an objective without scores")
    return scores


def _written(score: Score) -> list[Any]:
    return [score.mean, score.count, score.unit, *([] if score.error is None else [score.error])]
