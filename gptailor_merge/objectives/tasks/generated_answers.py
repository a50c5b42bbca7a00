"""Metrics of tasks whose answers a model writes.

A whole composed model generates, with its KV cache and in batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gptailor_merge.composing.memory import BatchSize
from gptailor_merge.digests import digest
from gptailor_merge.objectives.protocols import PerUnit, UnitSet
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.tasks.metric import Metric
from gptailor_merge.objectives.tasks.task_items import TaskItems
from gptailor_merge.objectives.tasks.task_objective import TaskObjective, common_metric

SAMPLING_SEED = 1234
"""lm-eval's, for tasks whose answers are sampled."""


@dataclass(frozen=True, eq=False)
class TaskGeneration(TaskObjective, PerUnit):
    """A metric of tasks whose answers are generated, by lm-eval's own code.

    Attributes:
        items: set name -> the items.
        lm: lm-eval's language model, into which each model is put.
        batches: how many answers memory holds at once.
    """

    name: str
    metric: Metric
    sets: tuple[UnitSet, ...]
    items: Mapping[str, TaskItems]
    lm: Any
    batches: BatchSize
    kind = "generation"

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        """Generates the answers to the items from `first` to `stop` and returns their values."""
        task = self.items[set_name].task
        # lm-eval keeps answers in its requests, so that each measurement has its own.
        items = [
            [replace(instance, resps=[], filtered_resps={}) for instance in item]
            for item in self.items[set_name].instances[first:stop]
        ]
        requests = list(chain(*items))
        self._answer([request for request in requests for _ in range(request.repeats)], model)
        ensemble = next(ensemble for ensemble in task._filters if ensemble.name == self.metric.filter)
        ensemble.apply(requests)
        values = [
            task.process_results(item[0].doc, [request.filtered_resps[ensemble.name] for request in item])
            for item in items
        ]
        return np.array([self.metric.of(value) for value in values])

    def _answer(self, requests: Sequence[Any], model: PreTrainedModel) -> None:
        """Adds an answer to each request."""

        def generate(size: int) -> list[str]:
            with _answering(self.lm, model, size):
                answers: list[str] = self.lm.generate_until(list(requests), disable_tqdm=True)
                return answers

        for request, answer in zip(requests, self.batches.run(generate, model.device), strict=True):
            request.resps.append(answer)

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """Returns lm-eval's own aggregate, but for the unit."""
        return Score(sum(units.tolist()) / len(units), len(units), self.metric.unit)


def generation_objective(
    items: Sequence[TaskItems], metric: str | None, lm: Any, *, batch_size: int = 16
) -> TaskGeneration:
    """Makes the objective for tasks whose answers are generated.

    Args:
        items: of each task.
        lm: see harness.encoder.
        batch_size: answers that are generated together.

    Raises:
        ConfigError: a task has no such metric, or tasks differ in it.
    """
    common = common_metric(items, metric)
    sets = tuple(
        UnitSet(
            of_task.name,
            digest([instance.arguments for item in of_task.instances for instance in item]),
            len(of_task.ids),
            frozenset(of_task.documents),
            batch_size,
        )
        for of_task in items
    )
    by_set = {of_task.name: of_task for of_task in items}
    return TaskGeneration(common.name, common, sets, by_set, lm, BatchSize(batch_size))


@contextmanager
def _answering(lm: Any, model: PreTrainedModel, batch_size: int) -> Iterator[None]:
    """Puts a model into lm-eval's language model, and takes it out at the end."""
    before = lm._model, lm._config, lm._device, lm.batch_size_per_gpu
    lm._model, lm._config, lm._device, lm.batch_size_per_gpu = model, model.config, model.device, batch_size
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(SAMPLING_SEED)
            yield
    finally:
        lm._model, lm._config, lm._device, lm.batch_size_per_gpu = before
