"""Loads dense members, tells them apart by their weights, and runs them as teachers."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model, member_digest
from gptailor_merge.objectives.protocols import Forward, Prediction
from gptailor_merge.scoring.passes import predictions_alone


class Teachers:
    """Dense members, loaded when first asked for; one at a time is in memory.

    Attributes:
        family: the members.
        device: they run on it.
    """

    def __init__(self, family: Family, device: torch.device, dtype: torch.dtype) -> None:
        self.family, self.device, self._dtype = family, device, dtype
        self._loaded: tuple[str, PreTrainedModel] | None = None

    def get(self, name: str) -> tuple[str, Forward]:
        """Returns a member's (digest of the weights, forward pass); logits have the base's vocabulary."""
        member = self.family.by_name(name)
        assert member is not None
        vocabulary = int(self.family.base.config["vocab_size"])

        def run(batch: Batch) -> Iterator[Prediction]:
            yield from predictions_alone(self.model(name), batch, vocabulary=vocabulary)

        return f"{member.model} {member_digest(member.directory)}", run

    def model(self, name: str) -> PreTrainedModel:
        """Returns the member's model."""
        if self._loaded is None or self._loaded[0] != name:
            member = self.family.by_name(name)
            assert member is not None
            self.release()
            self._loaded = (name, load_model(member.directory, self._dtype, self.device))
        return self._loaded[1]

    def release(self) -> None:
        """Frees the memory."""
        self._loaded = None
        gc.collect()
