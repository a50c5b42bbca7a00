"""The base of the kinds of costs: one number for a model, and helpers to measure it.

A cost depends on how many layers of which kinds a model has. Costs that take running a model are measured
once for each such shape, so that candidates of one shape have one number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gptailor_merge.models.architecture import Architecture
from gptailor_merge.objectives.config_types import Positive
from gptailor_merge.objectives.kinds import Context, ObjectiveConfig, PreparedObjective, Weight
from gptailor_merge.objectives.protocols import ModelObjective, PerUnit, UnitSet


class CostConfig(ObjectiveConfig):
    """A cost of a model: memory, or time on this device.

    Attributes:
        tokens: length of the prompt, or of the context; each cost has a default, or needs none.
        weight: factor in the loss; without one the cost is only one side of a front.
    """

    tokens: Positive | None = None
    weight: Weight | None = None

    is_cost: ClassVar[bool] = True

    @abstractmethod
    def cost(self, context: Context) -> ModelObjective:
        """Makes the objective, called by its kind."""

    def prepare(self, context: Context) -> PreparedObjective:
        """Makes the objective; it has no data."""
        return PreparedObjective.ready(self.cost(context))

    def sentence(self) -> str:
        """Returns the kind."""
        return self.kind


class CostPerModel(PerUnit, ABC):
    """An objective that gives a model one number, the less the better.

    A cost is a frozen dataclass with a field `name` and a `unit`, one of scores.COSTS.
    """

    direction = "minimize"

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of all that the number depends on besides the model."""

    @property
    def sets(self) -> tuple[UnitSet, ...]:
        """A single unit, the model itself."""
        return (UnitSet("model", self.fingerprint, 1),)

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        """Returns the number [1]."""
        return np.array([self.of(model)], dtype=np.float64)

    @abstractmethod
    def of(self, model: PreTrainedModel) -> float:
        """Returns the number for a model."""


Shapes = dict[Hashable, float]
"""Shape of a model -> its number."""


def once_per_shape(
    known: Shapes, model: PreTrainedModel, measure: Callable[[PreTrainedModel], float]
) -> float:
    """Returns the number of a model's shape, measured where it is not known yet."""
    kinds = Counter(Architecture.of(model.config.to_dict()).kinds)
    shape = (frozenset(kinds.items()), tuple(model.get_input_embeddings().weight.shape), model.dtype)
    if shape not in known:
        known[shape] = measure(model)
    return known[shape]


def stored_tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Yields the tensors that a checkpoint holds; tied ones count once."""
    yield from model.parameters()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def bytes_in(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    """Returns the bytes of a tensor whose floating-point numbers are stored in a dtype."""
    return tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.itemsize)


def prompt_ids(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Returns ids [1, tokens]; times and sizes do not depend on which ones they are."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    return (torch.arange(tokens, device=model.device) % rows)[None]


def cache_name(output: Any) -> str:
    """Returns what a model's output calls its cache, which transformers renamed in 5.24."""
    return "cache" if hasattr(output, "cache") else "past_key_values"
