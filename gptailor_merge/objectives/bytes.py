"""The kind `bytes`: how much memory a model's weights take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from gptailor_merge.digests import digest
from gptailor_merge.objectives.costs import CostConfig, CostPerModel, bytes_in, stored_tensors
from gptailor_merge.objectives.kinds import Context


class BytesConfig(CostConfig):
    """Bytes of the weights; `tokens` means nothing here."""

    kind: Literal["bytes"]

    def cost(self, context: Context) -> Bytes:
        """Makes the objective, for the dtype of the written model."""
        return Bytes(self.kind, context.out_dtype)


@dataclass(frozen=True)
class Bytes(CostPerModel):
    """Bytes of the weights in the dtype of the written model."""

    name: str
    dtype: torch.dtype
    unit = "bytes"

    @property
    def fingerprint(self) -> str:
        """Depends on the dtype."""
        return digest(["bytes", str(self.dtype)])

    def of(self, model: PreTrainedModel) -> float:
        """Adds up the bytes of all stored tensors."""
        return sum(bytes_in(tensor, self.dtype) for tensor in stored_tensors(model))
