"""Metrics of tasks whose answers are scored by their likelihood.

lm-eval makes the requests once per run and scores the answers; what a candidate adds are the likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.token_trees import ItemSet, Request, item_set
from gptailor_merge.objectives.protocols import Forward, Prediction, log_likelihood
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.tasks.metric import SMOOTH, Metric
from gptailor_merge.objectives.tasks.questions import right_options
from gptailor_merge.objectives.tasks.task_items import TaskItems
from gptailor_merge.objectives.tasks.task_objective import TaskObjective, common_metric


@dataclass(frozen=True, eq=False)
class TaskLikelihood(TaskObjective):
    """A metric of tasks whose answers are scored by their likelihood.

    Attributes:
        items: set name -> the items.
    """

    name: str
    metric: Metric
    sets: tuple[ItemSet, ...]
    items: Mapping[str, TaskItems]
    _known_weights: dict[str, list[float]] = field(default_factory=dict, repr=False)
    kind = "task"

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        """Returns each asked token's log-likelihood, and whether it is the likeliest [asked, 2]."""
        return torch.stack([log_likelihood(prediction), is_likeliest(prediction).float()], -1)

    def units(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        """Adds up the tokens of each request and lets lm-eval score the items; one number per item."""
        items = self._set(set_name)
        first, stop = items.items_of(min(rows), max(rows) + 1)
        asked = items.asked(rows, first, stop)
        per_token = values.reshape(-1, 2)[asked]
        lengths = [length for lengths in items.tokens_of_requests[first:stop] for length in lengths]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        sums = np.add.reduceat(per_token[:, 0], starts).tolist()
        greedy = np.minimum.reduceat(per_token[:, 1], starts).tolist()
        units, at = [], 0
        for number in range(first, stop):
            results: list[Any] = []
            for windows in self.items[set_name].requests[number]:
                after = at + len(windows)
                results.append((sum(sums[at:after]), all(greedy[at:after])))
                at = after
            units.append(self._unit(self.items[set_name], number, results))
        return np.array(units)

    def _unit(self, items: TaskItems, number: int, results: list[Any]) -> float:
        """Returns what is minimised of an item.

        Args:
            results: (log-likelihood, whether it is greedy) for each of lm-eval's requests.
        """
        document = items.instances[number][0].doc
        if self.metric.key in SMOOTH:
            difference = margin([value for value, _ in results], items.task, document)
            return -difference if self.metric.higher_is_better else float(np.logaddexp(0, -difference))
        if items.task.OUTPUT_TYPE == "loglikelihood_rolling":
            results = [value for value, _ in results]
        return self.metric.of(items.task.process_results(document, results))

    def size(self, set_name: str, units: int) -> float:
        """Returns the weight of the first `units` items."""
        return sum(self._weights(set_name)[:units])

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """Returns lm-eval's own aggregate, but for the unit."""
        count = self.size(set_name, len(units))
        return Score(sum(units.tolist()) / count, count, self.metric.unit)

    def _set(self, name: str) -> ItemSet:
        return next(items for items in self.sets if items.name == name)

    def _weights(self, set_name: str) -> list[float]:
        """Returns each item's weight: 1, or its words or bytes where the metric is a mean over these."""
        if set_name not in self._known_weights:
            items = self.items[set_name]
            self._known_weights[set_name] = [self._weight(items, n) for n in range(len(items.ids))]
        return self._known_weights[set_name]

    def _weight(self, items: TaskItems, number: int) -> float:
        if items.task.OUTPUT_TYPE != "loglikelihood_rolling":
            return 1.0
        value = items.task.process_results(items.instances[number][0].doc, [0.0])[self.metric.key]
        return float(value[1]) if isinstance(value, tuple) else 1.0


def likelihood_objective(items: Sequence[TaskItems], metric: str | None, *, trees: bool) -> TaskLikelihood:
    """Makes the objective for tasks whose answers are scored by their likelihood.

    Args:
        items: of each task.
        metric: see metric.metric_of.
        trees: see takes_trees.

    Raises:
        ConfigError: a task has no such metric, or tasks differ in it.
    """
    common = common_metric(items, metric)
    sets = tuple(
        item_set(of_task.name, _requests(of_task), trees=trees, documents=frozenset(of_task.documents))
        for of_task in items
    )
    return TaskLikelihood(common.name, common, sets, {of_task.name: of_task for of_task in items})


def is_likeliest(prediction: Prediction) -> torch.Tensor:
    """Tells of each token asked for whether a greedy model would say it, bool [asked]."""
    logits, at, asked = prediction.logits, prediction.at, prediction.next_ids
    assert at is not None
    # The largest logit is found faster than where it is; among equal ones the first counts.
    likeliest = logits[at, asked] == logits.amax(-1)[at]
    (equal,) = likeliest.nonzero(as_tuple=True)
    likeliest[equal] = logits[at[equal]].argmax(-1) == asked[equal]
    return likeliest


def margin(likelihoods: Sequence[float], task: Any, document: Any) -> float:
    """Returns log Σ p(right) − log Σ p(wrong), nats; 0 where an item has none of either.

    Args:
        likelihoods: of the options; those that lm-eval may ask for besides, without a context, come after.
    """
    right = right_options(task, document)
    options = range(len(task.doc_to_choice(document)))
    right_values = [likelihoods[option] for option in options if option in right]
    wrong_values = [likelihoods[option] for option in options if option not in right]
    return _log_sum(right_values) - _log_sum(wrong_values) if right_values and wrong_values else 0.0


def _log_sum(values: Sequence[float]) -> float:
    """Returns log Σ exp."""
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


def takes_trees(items: Sequence[TaskItems], forward: Forward, device: torch.device) -> bool:
    """Tells whether a model gives texts that share a row the likelihoods that it gives them alone.

    It is tried on the item with the longest such row: a model that looks less far back than a mask
    allows, or has states that run along a row, fails there.
    """
    shared = [requests for of_task in items for requests in _requests(of_task) if _tree_length(requests)]
    if not shared:
        return False
    longest = max(shared, key=_tree_length)
    answers = []
    for trees in (True, False):
        probe = item_set("probe", [longest], trees=trees)
        (batches,) = layout([probe], 1, device=device, rungs=(1.0,))
        rows = [row for batch in batches for segment in batch.segments for row in segment.rows]
        try:
            values = [log_likelihood(p) for batch in batches for p in forward(batch)]
        except (TypeError, ValueError, RuntimeError):  # a model that takes no positions or masks
            return False
        answers.append(torch.cat(values).float().cpu().numpy()[probe.asked(rows, 0, 1)])
    # Elsewhere models compute in 16 bits; what a model must not see costs more than their rounding.
    tolerance = 1e-4 if device.type == "cpu" else 0.05
    in_trees, apart = answers
    return bool(np.allclose(in_trees, apart, rtol=tolerance, atol=tolerance))


def _requests(items: TaskItems) -> list[list[Request]]:
    """Returns the requests of each item, those of its instances and their windows one after the other."""
    return [[request for windows in instances for request in windows] for instances in items.requests]


def _tree_length(requests: Sequence[Request]) -> int:
    """Returns the tokens of the longest row that texts would share; 0 where none would."""
    items = item_set("", [requests], trees=True)
    return max((len(row.ids) for row in items.rows if not row.is_text), default=0)
