"""The `tailor` merge method: how mergekit executes one slot, and all we know of its method API.

Lowering (recipe/lowering.py) turns every slot into a mergekit slice of one layer that carries its
`Operation` as JSON in the parameter `slot`. mergekit hands the sources' tensors to `TailorMethod`,
which calls `apply`; composing in memory calls the same `apply`. So both paths are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterScope,
    ParameterSpec,
    TensorEntry,
    TensorGroup,
)

from gptailor_merge.composing.editing import edited, from_json
from gptailor_merge.methods.arithmetic import apply, name_in_layer
from gptailor_merge.recipe.plan import SELECT, Operation
from gptailor_merge.recipe.recipe import TAILOR

SLOT = "slot"
"""The parameter of the lowered method: an `Operation` as JSON."""


EDITS = "edits"
"""What is done to the layer then, as JSON; slots without edits have none."""


CONFIG = "config"
"""The one parameter of a lowered configuration as a whole: the model whose config it takes."""


class TailorMethod(GroupMergeMethod):  # type: ignore[misc]  # mergekit has no types
    """The method that mergekit looks up by `merge_method: tailor`, after lowering."""

    spec = MergeMethodSpec(
        name=TAILOR,
        pretty_name="GPTailor",
        reference_url="https://arxiv.org/abs/2506.20480",
        parameters=(
            ParameterSpec(SLOT, str, ParameterScope.SHARED),
            ParameterSpec(EDITS, str, ParameterScope.SHARED, default=""),
            ParameterSpec(CONFIG, str, ParameterScope.SHARED, default=""),
        ),
        contract=InputContract(base=BasePolicy.IGNORED),
    )

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Apply the slot's operation; sources past the operation's own are padding (see lowering)."""
        operation = Operation.from_json(parameters[SLOT])
        wanted = len(operation.inputs)
        if len(group.entries) < wanted:
            raise ValueError(
                f"{group.metadata.name} is missing in {wanted - len(group.entries)} of the "
                f"{wanted} models that the recipe merges it from"
            )
        entries: Sequence[TensorEntry] = [replace(e, is_base=False) for e in group.entries[:wanted]]
        name = group.metadata.name or ""
        result = apply(operation, [e.tensor for e in entries], name)
        result = edited(from_json(parameters[EDITS]), result, name_in_layer(name))
        # A layer may be used twice; safetensors refuses to write one storage under two names.
        return result.clone() if operation.method == SELECT else result
