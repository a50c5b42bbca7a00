"""What a model writes: answers to tasks, and how much it repeats itself.

A whole composed model generates, with its KV cache and in batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.errors import DataError
from gptailor_merge.scoring.calibration import TextSource
from gptailor_merge.scoring.memory import BatchSize
from gptailor_merge.scoring.objectives import PerUnit, Score, UnitSet, digest
from gptailor_merge.scoring.task_items import Metric, OfTasks, TaskItems, common_metric

NGRAM = 4
"""Tokens of what is looked for again."""
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


@dataclass(frozen=True, eq=False)
class Repetition(PerUnit):
    """How much a model repeats itself when it goes on from the beginnings of documents, greedily.

    The unit is, of each prompt, the share of the generated n-grams that have been there before:
    1 − distinct/total (seq-rep-n: S. Welleck et al., 2020, arXiv 1908.04319, equation 5). What a
    tokenizer calls the end of a text does not end it, so that all have the same length.

    Attributes:
        prompts: set name -> the ids of each.
    """

    name: str
    sets: tuple[UnitSet, ...]
    prompts: Mapping[str, tuple[tuple[int, ...], ...]]
    new_tokens: int
    batches: BatchSize
    direction: str = "minimize"

    @property
    def fingerprint(self) -> str:
        return digest(["repetition", NGRAM, self.new_tokens, [(s.name, s.digest) for s in self.sets]])

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        prompts = self.prompts[set_name][first:stop]
        by_length: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(number)
        found = np.empty(len(prompts))
        for numbers in by_length.values():
            ids = torch.tensor([prompts[number] for number in numbers])
            found[numbers] = [repeated(one) for one in self._continued(model, ids)]
        return found

    def _continued(self, model: PreTrainedModel, ids: torch.Tensor) -> list[list[int]]:
        """What comes after prompts of one length [prompts, length]."""

        def generate(size: int) -> list[list[int]]:
            parts = [
                _greedy(model, part.to(model.device), self.new_tokens) for part in torch.split(ids, size)
            ]
            return [row for part in parts for row in part]

        return self.batches.run(generate, model.device)


def repetition(
    name: str,
    sources: Mapping[str, TextSource],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: int = 8,
    prompt_tokens: int = 32,
    new_tokens: int = 64,
    batch_size: int = 16,
) -> Repetition:
    """How much a model repeats itself, going on from the first documents of each source.

    Args:
        prompts: of each source; fewer where it has fewer documents.
        prompt_tokens: the beginning of each document; fewer where it is shorter.

    Raises:
        DataError: a source without a document.
    """
    sets, taken = [], {}
    for source_name, source in sources.items():
        encoded = ((text, tuple(tokenizer(text, verbose=False)["input_ids"])) for text in source.texts())
        begun = {
            text: ids[:prompt_tokens] for text, ids in islice((one for one in encoded if one[1]), prompts)
        }
        if not begun:
            raise DataError(f"{source.location}: no documents; nothing can be continued")
        ids = tuple(begun.values())
        documents = frozenset(" ".join(text.split()) for text in begun)
        sets.append(UnitSet(source_name, digest(ids), len(ids), documents, batch_size))
        taken[source_name] = ids
    return Repetition(name, tuple(sets), taken, new_tokens, BatchSize(batch_size))


def repeated(ids: Sequence[int]) -> float:
    """The share of n-grams that have been there before."""
    grams = list(zip(*(ids[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams)


def _greedy(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> list[list[int]]:
    """What a model writes after prompts of one length, whatever its own settings are."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, use_cache=True)
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    finally:
        model.generation_config = own
    rows: list[list[int]] = written[:, ids.shape[1] :].tolist()
    return rows
