"""Lowers a plan to a mergekit configuration that makes the same model.

Each slot becomes a slice of one layer. Embeddings and head become the first and the last slice, of no
layers, because mergekit takes the embeddings from the sources of the first slice, and final norm and
lm_head from those of the last. The rest, which is no part of the language model, becomes a slice of one
layer that no model has, before the last; registration.py tells mergekit which tensors it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptailor_merge.composing.editing import Placed, to_json
from gptailor_merge.host.tailor_method import CONFIG, EDITS, SLOT
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.recipe.plan import Edit, Operation, Plan
from gptailor_merge.recipe.recipe import TAILOR

REST_LAYER = (-1, 0)
"""The layer range of the slice whose tensors are no part of the language model."""


def lower(
    plan: Plan, *, chat_template: str | None = None, directories: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Returns the configuration as mergekit's MergeConfiguration reads it.

    Its base_model is the model that gives the tokenizer; if another model gives the config, the parameter
    `config` names that one.

    Args:
        directories: model -> directory of its weights, for models that mergekit must not look for.
    """

    def reference(model: str) -> str | dict[str, Any]:
        return _reference(str((directories or {}).get(model, model)))

    def slice_of(
        sources: list[tuple[str, int, int]], operation: Operation, edits: Sequence[Edit] = ()
    ) -> dict[str, Any]:
        # registration.py fills in the tensors of an edit once the models are on this machine.
        edit_parameter = {EDITS: to_json([Placed(edit, ()) for edit in edits])} if edits else {}
        models = [model for model, _, _ in sources]
        return {
            "sources": [
                {
                    "model": _alias(reference(model), models[:position].count(model)),
                    "layer_range": [first, last],
                }
                for position, (model, first, last) in enumerate(sources)
            ],
            "parameters": {SLOT: operation.to_json(), **edit_parameter},
        }

    embeddings, head = plan.embeddings, plan.head
    # mergekit pairs the head's sources with those of the first slice (plan.py, plan_module) and drops the
    # surplus, so the first slice is padded. TailorMethod ignores sources that its operation lacks.
    padding = [model for model in head[0] if model not in embeddings[0]]
    missing = max(0, len(head[0]) - len(embeddings[0]))
    outer = plan.outer_edits
    slices = [slice_of([(m, 0, 0) for m in (*embeddings[0], *padding[:missing])], embeddings[1], outer)]
    slices += [
        slice_of([(model, layer, layer + 1) for model, layer in slot.layers], slot.operation, slot.edits)
        for slot in plan.adapted_slots
    ]
    rest = plan.rest_component
    slices.append(slice_of([(model, *REST_LAYER) for model in rest[0]], rest[1]))
    slices.append(slice_of([(model, 0, 0) for model in head[0]], head[1], outer))
    document: dict[str, Any] = {"merge_method": TAILOR, "base_model": reference(plan.tokenizer)}
    if plan.tokenizer != plan.base_model:
        document["parameters"] = {CONFIG: json.dumps(reference(plan.base_model))}
    optional = {"dtype": plan.dtype, "out_dtype": plan.out_dtype, "chat_template": chat_template}
    document |= {name: value for name, value in optional.items() if value is not None}
    return {**document, "slices": slices}


def is_lowered(document: Mapping[str, Any]) -> bool:
    """Tells whether a tailor configuration has been lowered already (mergekit-multi reads it twice)."""
    slices = document.get("slices")
    return bool(slices) and all(
        isinstance(part, Mapping) and SLOT in (part.get("parameters") or {}) for part in slices or ()
    )


def config_base(parameters: Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """Returns the model whose config a lowered configuration takes; None stands for its base_model."""
    return json.loads(parameters[CONFIG]) if parameters and CONFIG in parameters else None


def _reference(model: str) -> str | dict[str, Any]:
    """Returns a model as mergekit reads it, spelt out if mergekit would misread a path with @ or +."""
    parsed = ModelId.parse(model)
    if not set(model) & set("@+"):
        return model
    adapter = {"lora": _path(parsed.adapter)} if parsed.adapter else {}
    return {"model": _path(parsed.model), **adapter}


def _alias(reference: str | dict[str, Any], times: int) -> str | dict[str, Any]:
    """Returns another reference to a model that occurs `times` times before in the same slice.

    mergekit stores a slice's tensors by the references of their models. A reference may override the
    architecture that config.json names, which makes it differ from the plain one and has no other effect,
    since registration.py ignores it.
    """
    if not times:
        return reference
    plain = {"model": {"path": reference}} if isinstance(reference, str) else reference
    return {**plain, "override_architecture": f"again {times}"}


def _path(model: ModelId) -> dict[str, Any]:
    if model.is_local:
        return {"path": model.path}
    return {"path": model.repo, "revision": model.revision}
