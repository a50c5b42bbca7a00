"""How much a model repeats itself in what it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.calibration.texts import TextSource
from gptailor_merge.composing.memory import BatchSize
from gptailor_merge.digests import digest
from gptailor_merge.errors import DataError
from gptailor_merge.objectives.protocols import PerUnit, UnitSet

NGRAM = 4
"""Tokens of what is looked for again."""


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
