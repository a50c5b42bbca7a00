"""What a model writes: answers to tasks, and how much it repeats itself.

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
from gptailor_merge.objectives.tasks.task_items import Metric, OfTasks, TaskItems, common_metric

SAMPLING_SEED = 1234
"""lm-eval's, for tasks whose answers are sampled."""


@dataclass(frozen=True, eq=False)
class TaskGeneration(OfTasks, PerUnit):
    """A metric of tasks whose answers are generated, by lm-eval's own code.

    Attributes:
        items: set name -> the items.
        lm: lm-eval's language model, whose model is put in.
    """

    name: str
    metric: Metric
    sets: tuple[UnitSet, ...]
    items: Mapping[str, TaskItems]
    lm: Any
    batches: BatchSize
    kind = "generation"

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        task = self.items[set_name].task
        # Answers are kept in lm-eval's requests: each measurement has its own.
        items = [
            [replace(one, resps=[], filtered_resps={}) for one in some]
            for some in self.items[set_name].instances[first:stop]
        ]
        requests = list(chain(*items))
        self._answer([one for one in requests for _ in range(one.repeats)], model)
        chosen = next(one for one in task._filters if one.name == self.metric.filter)
        chosen.apply(requests)
        values = [
            task.process_results(some[0].doc, [one.filtered_resps[chosen.name] for one in some])
            for some in items
        ]
        return np.array([self.metric.of(value) for value in values])

    def _answer(self, requests: Sequence[Any], model: PreTrainedModel) -> None:
        def generate(size: int) -> list[str]:
            with _answering(self.lm, model, size):
                answers: list[str] = self.lm.generate_until(list(requests), disable_tqdm=True)
                return answers

        for request, answer in zip(requests, self.batches.run(generate, model.device), strict=True):
            request.resps.append(answer)

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """lm-eval's own aggregate, but for the unit."""
        return Score(sum(units.tolist()) / len(units), len(units), self.metric.unit)


def generated(
    items: Sequence[TaskItems], metric: str | None, lm: Any, *, batch_size: int = 16
) -> TaskGeneration:
    """The objective that is a metric of tasks whose answers are generated.

    Args:
        lm: see task_items.encoder.

    Raises:
        ConfigError: see TaskItems.metric, or tasks that differ in it.
    """
    one = common_metric(items, metric)
    sets = tuple(
        UnitSet(
            made.name,
            digest([instance.arguments for some in made.instances for instance in some]),
            len(made.ids),
            frozenset(made.documents),
            batch_size,
        )
        for made in items
    )
    of_set = {made.name: made for made in items}
    return TaskGeneration(one.name, one, sets, of_set, lm, BatchSize(batch_size))


@contextmanager
def _answering(lm: Any, model: PreTrainedModel, batch_size: int) -> Iterator[None]:
    """Let lm-eval's language model be this one."""
    before = lm._model, lm._config, lm._device, lm.batch_size_per_gpu
    lm._model, lm._config, lm._device, lm.batch_size_per_gpu = model, model.config, model.device, batch_size
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(SAMPLING_SEED)
            yield
    finally:
        lm._model, lm._config, lm._device, lm.batch_size_per_gpu = before
