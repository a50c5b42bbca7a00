"""Metrics of lm-eval's tasks: the ones that are means over items, and two smooth ones of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptailor_merge.errors import ConfigError, ScoringError

MARGIN, CHOICE_LOSS = "margin", "choice_loss"


SMOOTH = (MARGIN, CHOICE_LOSS)
"""Our metrics of multiple choice beside lm-eval's accuracy, in nats: how much likelier the right answer is
than all others together; and the negative log-likelihood of the right one among them, log(1 + exp(−margin)),
in which nothing is gained by being surer of what is right already."""


@dataclass(frozen=True)
class Metric:
    """A way to score the items of a task.

    Attributes:
        name: as users know it: the key, and the filter where it is not the task's first.
        key: name in lm-eval's results.
        filter: lm-eval's filter of the answers.
        higher_is_better: True where users want a large value.
        unit: how users see the mean that is minimised, see scores.UNITS.
    """

    name: str
    key: str
    filter: str
    higher_is_better: bool
    unit: str

    @property
    def direction(self) -> str:
        """ "maximize" or "minimize", of the natural value."""
        return "maximize" if self.higher_is_better else "minimize"

    def of(self, values: Mapping[str, Any]) -> float:
        """Returns what is minimised of an item's values; where items have weights, a value is a pair.

        Raises:
            ScoringError: the task gives the item no such value.
        """
        if self.key not in values:
            raise ScoringError(f"an item has no {self.key}, found {', '.join(values)}")
        value = values[self.key]
        value = value[0] if isinstance(value, tuple) else value
        return float(value) if self.unit == "plain" else -float(value)


def metric_of(task_name: str, task: Any, name: str | None) -> Metric:
    """Returns a metric that a task's items have one by one.

    Args:
        task: lm-eval's.
        name: the metric's key, for a task with several filters perhaps with one of them:
            "exact_match,strict-match"; default the task's first metric.

    Raises:
        ConfigError: the task has no such metric, or its value is no mean over items.
    """
    known = list(task.aggregation())
    filters = [ensemble.name for ensemble in task._filters]
    key, _, chosen = (name or known[0]).partition(",")
    smooth = SMOOTH if task.OUTPUT_TYPE == "multiple_choice" else ()
    if key in smooth and not chosen:
        higher = key == MARGIN
        return Metric(key, key, filters[0], higher, "negated" if higher else "nats")
    if key not in known:
        hint = ", ".join([*known, *smooth])
        raise ConfigError(f"task {task_name}: no such metric, found {key!r}; known are {hint}")
    if chosen and chosen not in filters:
        raise ConfigError(
            f"task {task_name}: no such filter, found {chosen!r}; known are {', '.join(filters)}"
        )
    chosen = chosen or filters[0]
    full_name = key if chosen == filters[0] else f"{key},{chosen}"
    return Metric(full_name, key, chosen, *_scale(task_name, task, key))


def _scale(task_name: str, task: Any, key: str) -> tuple[bool, str]:
    """Tells whether higher is better, and returns the unit."""
    from lm_eval.api import metrics

    units = {
        metrics.mean: "plain",
        metrics.perplexity: "perplexity",
        metrics.weighted_perplexity: "perplexity",
        metrics.bits_per_byte: "bits",
    }
    aggregation = task.aggregation()[key]
    if aggregation not in units:
        by = getattr(aggregation, "__name__", "code of its own")
        raise ConfigError(
            f"task {task_name}: {key} is aggregated by {by}, and a search needs a mean over items; "
            f"its metrics are {', '.join(task.aggregation())}"
        )
    # The mean that stands behind a perplexity is of log-likelihoods.
    higher = units[aggregation] == "plain" and bool(task.higher_is_better()[key])
    return higher, "negated" if higher else units[aggregation]
