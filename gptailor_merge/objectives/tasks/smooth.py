"""Our smooth metrics of multiple choice, and how they change with the options' likelihoods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gptailor_merge.objectives.tasks.metric import MARGIN
from gptailor_merge.objectives.tasks.questions import right_options


def smooth_value(metric: str, likelihoods: Sequence[float], task: Any, document: Any) -> float:
    """Returns what is minimised of an item: its margin, negated, or log(1 + exp(−margin)), in nats."""
    difference = margin(likelihoods, task, document)
    return -difference if metric == MARGIN else float(np.logaddexp(0, -difference))


def smooth_slopes(metric: str, likelihoods: Sequence[float], task: Any, document: Any) -> list[float]:
    """Returns the derivative of `smooth_value` by each likelihood."""
    right, wrong = _sides(likelihoods, task, document)
    slopes = [0.0] * len(likelihoods)
    if not right or not wrong:
        return slopes
    scale = 1.0 if metric == MARGIN else math.exp(-np.logaddexp(0, margin(likelihoods, task, document)))
    for options, sign in ((right, -scale), (wrong, scale)):
        total = _log_sum([likelihoods[option] for option in options])
        for option in options:
            slopes[option] = sign * math.exp(likelihoods[option] - total)
    return slopes


def margin(likelihoods: Sequence[float], task: Any, document: Any) -> float:
    """Returns log Σ p(right) − log Σ p(wrong), nats; 0 where an item has none of either.

    Args:
        likelihoods: of the options; those that lm-eval may ask for besides, without a context, come after.
    """
    right, wrong = _sides(likelihoods, task, document)
    if not right or not wrong:
        return 0.0
    return _log_sum([likelihoods[option] for option in right]) - _log_sum([likelihoods[o] for o in wrong])


def _sides(likelihoods: Sequence[float], task: Any, document: Any) -> tuple[list[int], list[int]]:
    """Returns the right options and the wrong ones."""
    right = right_options(task, document)
    options = range(len(task.doc_to_choice(document)))
    return [o for o in options if o in right], [o for o in options if o not in right]


def _log_sum(values: Sequence[float]) -> float:
    """Returns log Σ exp."""
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
