"""The `tailor` merge method, by which mergekit executes one slot.

lowering.py turns every slot into a mergekit slice of one layer that carries its `Operation` as JSON in
the parameter `slot`. mergekit hands the sources' tensors to `TailorMethod`, which calls `apply`; composing
in memory calls the same `apply`.
"""

from __future__ import annotations

import json
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
"""The parameter that holds the slot's edits as JSON; slots without edits lack it."""


NAMES = "names"
"""The parameter that holds, as JSON, written name -> the model's name of the tensors that edits change."""


CONFIG = "config"
"""The only parameter of a lowered configuration as a whole: the model whose config it takes."""


class TailorMethod(GroupMergeMethod):  # type: ignore[misc]  # mergekit has no types
    """The method that mergekit looks up for `merge_method: tailor`, after lowering."""

    spec = MergeMethodSpec(
        name=TAILOR,
        pretty_name="GPTailor",
        reference_url="https://arxiv.org/abs/2506.20480",
        parameters=(
            ParameterSpec(SLOT, str, ParameterScope.SHARED),
            ParameterSpec(EDITS, str, ParameterScope.SHARED, default=""),
            ParameterSpec(NAMES, str, ParameterScope.SHARED, default="{}"),
            ParameterSpec(CONFIG, str, ParameterScope.SHARED, default=""),
        ),
        contract=InputContract(base=BasePolicy.IGNORED),
    )

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> torch.Tensor:
        """Applies the slot's operation and edits; entries beyond its inputs are padding (see lowering)."""
        operation = Operation.from_json(parameters[SLOT])
        count = len(operation.inputs)
        if len(group.entries) < count:
            raise ValueError(
                f"{group.metadata.name} is missing in {count - len(group.entries)} of the "
                f"{count} models that the recipe merges it from"
            )
        entries: Sequence[TensorEntry] = [replace(e, is_base=False) for e in group.entries[:count]]
        name = group.metadata.name or ""
        result = apply(operation, [e.tensor for e in entries], name)
        inner = name_in_layer(name)
        inner = json.loads(parameters[NAMES]).get(inner, inner)
        result = edited(from_json(parameters[EDITS]), result, inner)
        # A layer may be used twice; safetensors refuses to write one storage under two names.
        return result.clone() if operation.method == SELECT else result
