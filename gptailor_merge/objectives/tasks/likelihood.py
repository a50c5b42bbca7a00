"""lm-eval's tasks as objectives.

A task asks how likely answers are, or has them generated. lm-eval makes the requests once per run and
scores the answers; what a candidate needs are the answers.
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
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.protocols import Forward, Prediction, log_likelihood
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.tasks.documents import right_options
from gptailor_merge.objectives.tasks.generation import TaskGeneration, generated
from gptailor_merge.objectives.tasks.task_items import SMOOTH, Metric, OfTasks, TaskItems, common_metric


def objective(
    items: Sequence[TaskItems], metric: str | None, *, trees: bool, lm: Any, batch_size: int = 16
) -> TaskLikelihood | TaskGeneration:
    """The objective that is a metric of tasks.

    Args:
        metric: see TaskItems.metric.
        trees: see takes_trees.
        lm: see task_items.encoder.
        batch_size: answers that are generated together.

    Raises:
        ConfigError: see TaskItems.metric; or tasks that are not of one kind.
    """
    kinds = {made.generates for made in items}
    if len(kinds) > 1:
        names = ", ".join(made.name for made in items if made.generates)
        raise ConfigError(
            f"answers are generated in {names} only; expected an objective of their own for them"
        )
    if kinds == {True}:
        return generated(items, metric, lm, batch_size=batch_size)
    return likelihood(items, metric, trees=trees)


@dataclass(frozen=True, eq=False)
class TaskLikelihood(OfTasks):
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
        """Of each token asked for its log-likelihood, and whether it is the likeliest."""
        return torch.stack([log_likelihood(prediction), is_likeliest(prediction).float()], -1)

    def units(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        items = self._set(set_name)
        first, stop = items.items_of(min(rows), max(rows) + 1)
        asked = items.asked(rows, first, stop)
        of_token = values.reshape(-1, 2)[asked]
        lengths = [length for of_item in items.tokens_of_requests[first:stop] for length in of_item]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        sums = np.add.reduceat(of_token[:, 0], starts).tolist()
        greedy = np.minimum.reduceat(of_token[:, 1], starts).tolist()
        found, at = [], 0
        for number in range(first, stop):
            results: list[Any] = []
            for windows in self.items[set_name].requests[number]:
                after = at + len(windows)
                results.append((sum(sums[at:after]), all(greedy[at:after])))
                at = after
            found.append(self._unit(self.items[set_name], number, results))
        return np.array(found)

    def _unit(self, items: TaskItems, number: int, results: list[Any]) -> float:
        document = items.instances[number][0].doc
        if self.metric.key in SMOOTH:
            found = margin([value for value, _ in results], items.task, document)
            return -found if self.metric.higher_is_better else float(np.logaddexp(0, -found))
        if items.task.OUTPUT_TYPE == "loglikelihood_rolling":
            results = [value for value, _ in results]
        return self.metric.of(items.task.process_results(document, results))

    def size(self, set_name: str, units: int) -> float:
        return sum(self._weights(set_name)[:units])

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """lm-eval's own aggregate, but for the unit."""
        count = self.size(set_name, len(units))
        return Score(sum(units.tolist()) / count, count, self.metric.unit)

    def _set(self, name: str) -> ItemSet:
        return next(items for items in self.sets if items.name == name)

    def _weights(self, set_name: str) -> list[float]:
        """Of each item: 1, or its words or bytes where the metric is a mean over these."""
        if set_name not in self._known_weights:
            items = self.items[set_name]
            self._known_weights[set_name] = [self._weight(items, n) for n in range(len(items.ids))]
        return self._known_weights[set_name]

    def _weight(self, items: TaskItems, number: int) -> float:
        if items.task.OUTPUT_TYPE != "loglikelihood_rolling":
            return 1.0
        value = items.task.process_results(items.instances[number][0].doc, [0.0])[self.metric.key]
        return float(value[1]) if isinstance(value, tuple) else 1.0


def is_likeliest(prediction: Prediction) -> torch.Tensor:
    """Whether a greedy model would say each token asked for, bool [asked]."""
    logits, at, asked = prediction.logits, prediction.at, prediction.next_ids
    assert at is not None
    # The largest logit is found faster than where it is; of several that are equal the first counts.
    likeliest = logits[at, asked] == logits.amax(-1)[at]
    (equal,) = likeliest.nonzero(as_tuple=True)
    likeliest[equal] = logits[at[equal]].argmax(-1) == asked[equal]
    return likeliest


def margin(likelihoods: Sequence[float], task: Any, document: Any) -> float:
    """log Σ p(right) − log Σ p(wrong), nats; 0 of an item with none of either.

    Args:
        likelihoods: of the options; those that lm-eval may ask for besides, without a context, come after.
    """
    right = right_options(task, document)
    options = range(len(task.doc_to_choice(document)))
    of_right = [likelihoods[option] for option in options if option in right]
    of_wrong = [likelihoods[option] for option in options if option not in right]
    return _log_sum(of_right) - _log_sum(of_wrong) if of_right and of_wrong else 0.0


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


def likelihood(items: Sequence[TaskItems], metric: str | None, *, trees: bool) -> TaskLikelihood:
    """The objective that is a metric of tasks whose answers are scored by their likelihood.

    Raises:
        ConfigError: see TaskItems.metric, or tasks that differ in it.
    """
    one = common_metric(items, metric)
    sets = tuple(
        item_set(made.name, _flat(made), trees=trees, documents=frozenset(made.documents)) for made in items
    )
    return TaskLikelihood(one.name, one, sets, {made.name: made for made in items})


def takes_trees(items: Sequence[TaskItems], forward: Forward, device: torch.device) -> bool:
    """Whether a model gives texts that share a row the likelihoods that it gives them alone.

    It is asked on the item with the longest such row: a model that looks less far back than a mask
    allows, or has states that run along a row, does not.
    """
    shared = [requests for made in items for requests in _flat(made) if _tree_length(requests)]
    if not shared:
        return False
    longest = max(shared, key=_tree_length)
    found = []
    for trees in (True, False):
        one = item_set("probe", [longest], trees=trees)
        (batches,) = layout([one], 1, device=device, rungs=(1.0,))
        rows = [row for batch in batches for segment in batch.segments for row in segment.rows]
        try:
            made = [log_likelihood(p) for batch in batches for p in forward(batch)]
        except (TypeError, ValueError, RuntimeError):  # a model that takes no positions or masks
            return False
        found.append(torch.cat(made).float().cpu().numpy()[one.asked(rows, 0, 1)])
    # Elsewhere models compute in 16 bits; what a model must not see costs more than their rounding.
    tolerance = 1e-4 if device.type == "cpu" else 0.05
    in_trees, apart = found
    return bool(np.allclose(in_trees, apart, rtol=tolerance, atol=tolerance))


def _flat(items: TaskItems) -> list[list[Request]]:
    return [[request for windows in of_item for request in windows] for of_item in items.requests]


def _tree_length(requests: Sequence[Request]) -> int:
    """Tokens of the longest row that texts would share."""
    made = item_set("", [requests], trees=True)
    return max((len(row.ids) for row in made.rows if not row.is_text), default=0)
