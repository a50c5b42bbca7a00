"""Measures on the base model how fast this machine scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.prefixes import advance
from gptailor_merge.models.architecture import layers_of
from gptailor_merge.models.loading import load_model
from gptailor_merge.models.member import Member
from gptailor_merge.scoring.passes import predictions

FIRST_TOKENS = 32
"""Tokens of the first batch, which warms up and tells how large a one can be measured."""


MOST_SECONDS = 5.0
"""The measured batch is made smaller where it would take longer than this."""


@dataclass(frozen=True)
class BaseSpeed:
    """The time that a token takes on its way through the base model.

    Attributes:
        tokens: those of the batch that was measured.
        layers: seconds per token in all layers together.
        head: seconds per token in final norm, head and the sums over the vocabulary.
    """

    tokens: int
    layers: float
    head: float

    def seconds(self, tokens: int, share: float) -> float:
        """Returns the seconds that tokens take in a model with a share of the base's layers."""
        return tokens * (share * self.layers + self.head)


def measured_speed(
    base: Member,
    dtype: torch.dtype,
    device: torch.device,
    *,
    batch_tokens: int,
    sequence_length: int,
    clock: Callable[[], float] = time.perf_counter,
) -> BaseSpeed:
    """Loads the base and runs a batch of any tokens through it.

    Args:
        dtype: of the forward pass.
        batch_tokens: of the batch, at most.
        sequence_length: tokens that the model sees at once.

    Raises:
        FamilyError: the model cannot be loaded.
        RuntimeError: the device's memory does not hold it.
    """
    model = load_model(base.directory, dtype, device)
    few = min(FIRST_TOKENS, batch_tokens)
    first = _timed(model, _batch(base, few, sequence_length, device), clock)
    affordable = int(MOST_SECONDS * few / max(sum(first), 1e-9))
    tokens = max(few, min(batch_tokens, affordable))
    batch = _batch(base, tokens, sequence_length, device)
    layers, head = _timed(model, batch, clock)
    count = batch.ids.numel()
    return BaseSpeed(count, layers / count, head / count)


def _batch(base: Member, tokens: int, sequence_length: int, device: torch.device) -> Batch:
    """Returns a batch of about as many tokens: whole sequences, or a single shorter one."""
    length = max(2, min(sequence_length, tokens))
    ids = (torch.arange(length * max(1, tokens // length)) % base.vocabulary_size).view(-1, length)
    token_set = TokenSet("any", tuple(ids), "any")
    ((batch,),) = layout([token_set], ids.numel(), device=device, rungs=(1.0,))
    return batch


def _timed(model: PreTrainedModel, batch: Batch, clock: Callable[[], float]) -> tuple[float, float]:
    """Returns the seconds that a batch takes in the layers, and behind them."""
    depth = len(layers_of(model))
    begun = clock()
    (state,) = advance(model, batch.ids, None, range(depth), {depth - 1})
    _wait_for(batch.ids.device)
    between = clock()
    for _ in predictions(model, batch, state):
        pass
    _wait_for(batch.ids.device)
    return between - begun, clock() - between


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
