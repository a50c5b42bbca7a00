"""The kind `parameters`: the size of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from gptailor_merge.digests import digest
from gptailor_merge.objectives.costs import CostConfig, CostPerModel, stored_tensors
from gptailor_merge.objectives.kinds import Context


class ParametersConfig(CostConfig):
    """The number of parameters; `tokens` means nothing here."""

    kind: Literal["parameters"]

    def cost(self, context: Context) -> ParameterCount:
        """Makes the objective."""
        return ParameterCount(self.kind)


@dataclass(frozen=True)
class ParameterCount(CostPerModel):
    """The count of numbers that a model stores; tied ones count once."""

    name: str
    unit = "count"

    @property
    def fingerprint(self) -> str:
        """Depends on nothing but the model."""
        return digest(["parameters"])

    def of(self, model: PreTrainedModel) -> float:
        """Counts the numbers."""
        return sum(tensor.numel() for tensor in stored_tensors(model))
