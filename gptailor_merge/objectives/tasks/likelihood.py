"""Metrics of tasks whose answers are scored by their likelihood.

lm-eval makes the requests once per run and scores the answers; what a candidate adds are the likelihoods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.token_trees import ItemSet, Request, item_set
from gptailor_merge.objectives.protocols import Forward, Prediction, log_likelihood
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.tasks.metric import SMOOTH, Metric
from gptailor_merge.objectives.tasks.smooth import smooth_slopes, smooth_value
from gptailor_merge.objectives.tasks.task_items import TaskItems
from gptailor_merge.objectives.tasks.task_objective import TaskObjective, common_metric


class _Asked(NamedTuple):
    """The tokens that items ask for, request by request.

    Attributes:
        places: their places among the values of rows.
        starts: index into `places` of each request's first token.
        of_items: number of an item, and for each of lm-eval's requests the requests that it takes.
    """

    places: NDArray[np.int64]
    starts: NDArray[np.int64]
    of_items: list[tuple[int, list[slice]]]


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
        items, asked = self.items[set_name], self._asked(set_name, rows)
        per_token = values.reshape(-1, 2)[asked.places]
        sums = np.add.reduceat(per_token[:, 0], asked.starts).tolist()
        greedy = np.minimum.reduceat(per_token[:, 1], asked.starts).tolist()
        return np.array(
            [
                self._unit(items, number, [(sum(sums[part]), all(greedy[part])) for part in parts])
                for number, parts in asked.of_items
            ]
        )

    def slopes(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        """Returns the derivative of the sum of the units by each value kept; the metric is a smooth one."""
        items, asked = self.items[set_name], self._asked(set_name, rows)
        sums = np.add.reduceat(values.reshape(-1, 2)[asked.places, 0], asked.starts)
        of_requests = np.zeros(len(sums))
        for number, parts in asked.of_items:
            likelihoods = [float(sums[part].sum()) for part in parts]
            document = items.instances[number][0].doc
            slopes = smooth_slopes(self.metric.key, likelihoods, items.task, document)
            for part, slope in zip(parts, slopes, strict=True):
                of_requests[part] = slope
        result = np.zeros((values.size // 2, 2))
        of_tokens = np.repeat(of_requests, np.diff([*asked.starts, len(asked.places)]))
        np.add.at(result[:, 0], asked.places, of_tokens)
        return result.reshape(values.shape)

    def _asked(self, set_name: str, rows: Sequence[int]) -> _Asked:
        items = self._set(set_name)
        first, stop = items.items_of(min(rows), max(rows) + 1)
        lengths = [length for lengths in items.tokens_of_requests[first:stop] for length in lengths]
        of_items, at = [], 0
        for number in range(first, stop):
            ends = list(accumulate((len(w) for w in self.items[set_name].requests[number]), initial=at))
            of_items.append((number, [slice(*ends[i : i + 2]) for i in range(len(ends) - 1)]))
            at = ends[-1]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return _Asked(items.asked(rows, first, stop), starts, of_items)

    def _unit(self, items: TaskItems, number: int, results: list[Any]) -> float:
        """Returns what is minimised of an item.

        Args:
            results: (log-likelihood, whether it is greedy) for each of lm-eval's requests.
        """
        document = items.instances[number][0].doc
        if self.metric.key in SMOOTH:
            return smooth_value(self.metric.key, [value for value, _ in results], items.task, document)
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
    known, at, asked = prediction.log_probabilities, prediction.at, prediction.next_ids
    assert at is not None
    # The largest number is found faster than where it is; among equal ones the first counts.
    likeliest = known[at, asked] == known.amax(-1)[at]
    (equal,) = likeliest.nonzero(as_tuple=True)
    likeliest[equal] = known[at[equal]].argmax(-1) == asked[equal]
    return likeliest


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
