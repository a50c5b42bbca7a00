"""The sequences that a model is trained on, each with what its teacher predicts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.errors import DataError
from gptailor_merge.objectives.kl import Reference, build_kl
from gptailor_merge.objectives.protocols import Forward

Lesson = Mapping[str, torch.Tensor]
"""`input_ids` int64 [length], and of the teacher's likeliest next tokens `indices` int32 and
`log_probabilities` float32, [length - 1, k] each; a lesson without a teacher has ids alone."""


BATCH_TOKENS = 8192
"""Tokens that a teacher sees at once, approximately."""


APART = 20
"""The number of sequences of a text of which one is held apart: it tells when to stop."""


@dataclass(frozen=True)
class Lessons:
    """The lessons of a training, and those that tell whether it helps.

    Attributes:
        taught: lessons that are trained on, texts in turn.
        apart: lessons that are not.
    """

    taught: Sequence[Lesson]
    apart: Sequence[Lesson]


def lessons(
    sets: Sequence[TokenSet],
    teachers: Mapping[str, tuple[str, Forward]],
    *,
    top_k: int,
    device: torch.device,
) -> Lessons:
    """Runs each teacher over its texts once, one teacher after the other.

    Args:
        teachers: name of a text -> (digest, forward pass) of its teacher; empty for plain fine-tuning.
        top_k: how many of a teacher's likeliest tokens are kept of each position, see kl.KullbackLeibler.

    Raises:
        DataError: a text has a single sequence.
    """
    for token_set in sets:
        if len(token_set.sequences) < 2:
            raise DataError(
                f"{token_set.name}: one sequence of {token_set.tokens} tokens is all there is; some must be "
                "trained on and some held apart, so that two are needed"
            )
    predicted: Mapping[str, Reference] = {}
    if teachers:
        ((*batches,),) = layout(sets, BATCH_TOKENS, device=device, rungs=(1.0,))
        predicted = build_kl("kl", sets, teachers=teachers, top_k=top_k, batches=batches).references
    taught: list[list[Lesson]] = []
    apart: list[Lesson] = []
    for token_set in sets:
        of_set: list[Lesson] = [{"input_ids": ids} for ids in token_set.sequences]
        if reference := predicted.get(token_set.name):
            of_set = [
                {**lesson, "indices": indices.cpu(), "log_probabilities": values.cpu()}
                for lesson, indices, values in zip(
                    of_set, reference.indices, reference.log_probabilities, strict=True
                )
            ]
        held = range(min(APART, len(of_set)) - 1, len(of_set), APART)
        apart += [of_set[number] for number in held]
        taught.append([lesson for number, lesson in enumerate(of_set) if number not in held])
    longest = max(map(len, taught))
    in_turn = [of_set[n] for n in range(longest) for of_set in taught if n < len(of_set)]
    return Lessons(in_turn, apart)
