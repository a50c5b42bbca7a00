"""The kind `repetition`: how much a model repeats itself in what it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.calibration.texts import TextSource, first_tokens, identity
from gptailor_merge.composing.memory import BatchSize
from gptailor_merge.digests import digest
from gptailor_merge.errors import DataError
from gptailor_merge.objectives.config_types import Positive
from gptailor_merge.objectives.kinds import Context, PreparedObjective, Weight
from gptailor_merge.objectives.protocols import PerUnit, UnitSet
from gptailor_merge.objectives.text_kinds import DataConfig, text_source

NGRAM = 4
"""Length of what counts as a repetition when it comes again, in tokens."""


class RepetitionConfig(DataConfig):
    """Repetition in what a model writes: the share of 4-grams that have been there before.

    Attributes:
        data: texts; the prompts are the beginnings of their documents.
        prompts: how many from each of the data.
        prompt_tokens: length of a prompt.
        new_tokens: length of what is generated after it.
    """

    kind: Literal["repetition"]
    prompts: Positive = 8
    prompt_tokens: Positive = 32
    new_tokens: Annotated[int, Field(ge=4)] = 64
    weight: Weight = 1.0

    def prepare(self, context: Context) -> PreparedObjective:
        """Takes the prompts from the data.

        Raises:
            DataError: a source cannot be read, or has no document.
        """
        objective = repetition(
            self.kind,
            {name: text_source(source) for name, source in self.data.items()},
            context.tokenizer,
            prompts=self.prompts,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
        )
        return PreparedObjective.ready(objective)

    def sentence(self) -> str:
        """Names the texts and the lengths of prompts and continuations."""
        return (
            f"repetition on {self.data_in_words()}; {self.prompts} prompts each of {self.prompt_tokens} "
            f"tokens, {self.new_tokens} tokens written"
        )


@dataclass(frozen=True, eq=False)
class Repetition(PerUnit):
    """Repetition in what a model writes, greedily, after the beginnings of documents.

    A unit is a prompt, its value the share of the generated n-grams that have been there before:
    1 − distinct/total (seq-rep-n: S. Welleck et al., 2020, arXiv 1908.04319, equation 5). The token that
    ends a text does not end a continuation, so that all have the same length.

    Attributes:
        prompts: set name -> the token ids of each prompt.
        new_tokens: length of a continuation.
        batches: how many prompts memory holds at once.
    """

    name: str
    sets: tuple[UnitSet, ...]
    prompts: Mapping[str, tuple[tuple[int, ...], ...]]
    new_tokens: int
    batches: BatchSize
    direction: str = "minimize"

    @property
    def fingerprint(self) -> str:
        """Depends on the prompts and on how long the continuations are."""
        return digest(["repetition", NGRAM, self.new_tokens, [(s.name, s.digest) for s in self.sets]])

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        """Returns the repeated share for the prompts from `first` to `stop`."""
        prompts = self.prompts[set_name][first:stop]
        by_length: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(number)
        shares = np.empty(len(prompts))
        for numbers in by_length.values():
            ids = torch.tensor([prompts[number] for number in numbers])
            shares[numbers] = [repeated(continuation) for continuation in self._continued(model, ids)]
        return shares

    def _continued(self, model: PreTrainedModel, ids: torch.Tensor) -> list[list[int]]:
        """Returns the continuations of prompts of one length [prompts, length]."""

        def generate(size: int) -> list[list[int]]:
            parts = [greedy(model, part.to(model.device), self.new_tokens) for part in torch.split(ids, size)]
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
    """Takes the prompts from the first documents of each source.

    Args:
        prompts: how many from each source; fewer where it has fewer documents.
        prompt_tokens: length of a prompt; fewer where its document is shorter.

    Raises:
        DataError: a source without a document.
    """
    sets, prompts_of = [], {}
    for source_name, source in sources.items():
        with closing(source.documents(tokenizer)) as texts:
            encoded = ((text, first_tokens(tokenizer, text, prompt_tokens)[:prompt_tokens]) for text in texts)
            filled = ((document.text, tuple(ids)) for document, ids in encoded if ids)
            beginnings = dict(islice(filled, prompts))
        if not beginnings:
            raise DataError(f"{source.location}: no documents; nothing can be continued")
        ids = tuple(beginnings.values())
        documents = frozenset(map(identity, beginnings))
        sets.append(UnitSet(source_name, digest(ids), len(ids), documents, batch_size))
        prompts_of[source_name] = ids
    return Repetition(name, tuple(sets), prompts_of, new_tokens, BatchSize(batch_size))


def repeated(ids: Sequence[int]) -> float:
    """Returns the share of n-grams that have been there before.

    >>> repeated([1, 2, 3, 4, 5])
    0.0
    >>> repeated([1, 1, 1, 1, 1])
    0.5
    """
    count, again = repeated_grams(ids)
    return 1 - (count - again) / count


def repeated_grams(ids: Sequence[int]) -> tuple[int, int]:
    """Returns the number of n-grams, and of those that have been there before.

    >>> repeated_grams([1, 1, 1, 1, 1]), repeated_grams([1])
    ((2, 1), (0, 0))
    """
    grams = list(zip(*(ids[start:] for start in range(NGRAM)), strict=False))
    return len(grams), len(grams) - len(set(grams))


def greedy(
    model: PreTrainedModel, ids: torch.Tensor, tokens: int, *, ends: Sequence[int] = ()
) -> list[list[int]]:
    """Returns what a model writes after prompts of one length, whatever its own settings are.

    Args:
        ids: [prompts, length].
        tokens: the most that are written.
        ends: tokens that end a text; by default nothing does.
    """
    before = model.generation_config
    model.generation_config = GenerationConfig()
    stop = {"eos_token_id": list(ends), "pad_token_id": ends[0]} if ends else {}
    try:
        settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, use_cache=True, **stop)
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    finally:
        model.generation_config = before
    rows: list[list[int]] = written[:, ids.shape[1] :].tolist()
    return rows
