"""Divides a plan into stages, each of which is one plain mergekit configuration.

A mergekit configuration has one method. Where that is the task arithmetic of all merged layers, or one of
its relatives, which give a base without other sources back, there is one stage. Elsewhere merged layers are
written first, by one stage per method, and the last stage stacks layers of the members and of these
intermediate models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergekit.merge_methods import registry
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

from gptailor_merge.composing.output_projections import placed
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.recipe.grouping import runs
from gptailor_merge.recipe.plan import SELECT, Component, Filtered, Operation, Plan, Scalar, Settings, Slot

SliceDocument = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One configuration, whose layers are all made by one method.

    Attributes:
        name: the name of the intermediate model; None for the model itself.
        kept: a layer of the base for each of the stage's layers, of the same kind.
        slices: the slices of the configuration.
    """

    name: str | None
    method: str
    kept: tuple[int, ...]
    slices: tuple[Mapping[str, Any], ...]


def stages(plan: Plan, config: Mapping[str, Any]) -> list[Stage]:
    """Returns the stages of a plan in the order of work; the last makes the model.

    Args:
        config: the config of the base.
    """
    if (method := _only_method(plan)) is not None:
        slices = [
            _end_slice(plan.embeddings),
            *(_merge_slice(_sources(slot, {}), _as_merge(slot.operation)) for slot in plan.slots),
            _end_slice(plan.head),
        ]
        return [Stage(None, method, plan.kept, tuple(slices))]
    copies = _copies(plan.slots)
    result = [_copy_stage(name, layers) for name, layers in copies.items()]
    places: dict[Slot, tuple[str, int]] = {}
    for method in dict.fromkeys(s.operation.method for s in plan.slots if s.operation.method != SELECT):
        slots = list(dict.fromkeys(slot for slot in plan.slots if slot.operation.method == method))
        name = f"merged-by-{method}"
        places |= {slot: (name, place) for place, slot in enumerate(slots)}
        slices = [_merge_slice(_sources(slot, copies), slot.operation) for slot in slots]
        result.append(Stage(name, method, tuple(slot.layers[0][1] for slot in slots), tuple(slices)))
    ends: dict[str, str] = {}
    for end, component in (("embeddings", plan.embeddings), ("head", plan.head)):
        ends[end] = model_path(component.models[0])
        if component.operation.method != SELECT:
            ends[end] = f"merged-{end}"
            # mergekit writes no model without layers; embeddings and head come with this one.
            sources = [(model_path(model), 0, 1) for model in component.models]
            part = _merge_slice(sources, component.operation)
            result.append(Stage(ends[end], component.operation.method, (0,), (part,)))
    stacked = [_select_slice(ends["embeddings"], 0, 0)]
    stacked += _stack([_selection(slot, places, config) for slot in plan.slots])
    stacked.append(_select_slice(ends["head"], 0, 0))
    return [*result, Stage(None, SELECT, plan.kept, tuple(stacked))]


def _only_method(plan: Plan) -> str | None:
    """Returns the method of a configuration that makes the whole model, or None where none does."""
    operations = [*(slot.operation for slot in plan.slots), plan.embeddings.operation, plan.head.operation]
    methods = {operation.method for operation in operations} - {SELECT}
    if len(methods) != 1 or any(any(o.inputs) for o in operations if o.method == SELECT):
        return None
    (method,) = methods
    if not isinstance(registry.get(method), GeneralizedTaskArithmeticMerge):
        return None
    if any(slot.edits for slot in plan.slots) or _copies(plan.slots):
        return None
    # mergekit pairs the head's sources with as many as the first slice has, and drops the others.
    return method if len(plan.head.models) <= len(plan.embeddings.models) else None


def _as_merge(operation: Operation) -> Operation:
    """Returns an operation in which a selected tensor is the base that nothing is added to."""
    return replace(operation, base=0) if operation.method == SELECT else operation


def _end_slice(component: Component) -> SliceDocument:
    """Returns the slice of no layers that embeddings or head come from."""
    return _merge_slice([(model_path(m), 0, 0) for m in component.models], _as_merge(component.operation))


def model_path(model: str) -> str:
    """Returns a model by its full path: a configuration is run in the directory of its skeletons."""
    parsed = ModelId.parse(model)
    parts = [p for p in (parsed.model, parsed.adapter) if p is not None]
    return "+".join(str(Path(p.path).resolve()) if p.is_local else p.path for p in parts)


def _selection(slot: Slot, places: Mapping[Slot, tuple[str, int]], config: Mapping[str, Any]) -> Slot:
    """Returns a slot that selects a slot's layer from a member or an intermediate model.

    Args:
        places: merged slot -> (intermediate model, layer) that holds it.
    """
    layer = places.get(slot) or (model_path(slot.layers[0][0]), slot.layers[0][1])
    scale = slot.operation.inputs[0] if slot.operation.method == SELECT else ()
    return Slot((layer,), Operation(SELECT, (_zeroed(slot, config, scale),)))


def _zeroed(slot: Slot, config: Mapping[str, Any], scale: Settings) -> Settings:
    """Returns passthrough's setting for a slot, in which the scale of parts that are left out is zero."""
    left_out = placed([e for e in slot.edits if e.digest is None], config, slot.layers[0][1])
    zeros: list[tuple[str | None, Scalar]] = [(name, 0.0) for edit in left_out for name in edit.names]
    if not zeros:
        return scale
    value = dict(scale).get("scale", 1.0)
    return (("scale", (*zeros, *(value if isinstance(value, tuple) else ((None, value),)))),)


def _copy_names(slot: Slot) -> Iterator[str | None]:
    """Yields for each source None, or an intermediate model's name if its own model is in the slot already.

    mergekit requires the layers of a slice to come from different models.
    """
    seen: set[str] = set()
    repeated = 0
    for model, _ in slot.layers:
        if model in seen:
            repeated += 1
            yield f"again-{repeated}"
        else:
            yield None
        seen.add(model)


def _copies(slots: Sequence[Slot]) -> dict[str, list[tuple[str, int]]]:
    """Returns name of an intermediate model -> the (model, layer) pairs that it is a stack of."""
    copies: dict[str, list[tuple[str, int]]] = {}
    for slot in slots:
        for layer, name in zip(slot.layers, _copy_names(slot), strict=True):
            if name is not None and layer not in copies.setdefault(name, []):
                copies[name].append(layer)
    return copies


def _copy_stage(name: str, layers: Sequence[tuple[str, int]]) -> Stage:
    kept = tuple(layer for _, layer in layers)
    slices = tuple(_select_slice(model_path(model), layer, layer + 1) for model, layer in layers)
    return Stage(name, SELECT, kept, slices)


def _sources(slot: Slot, copies: Mapping[str, Sequence[tuple[str, int]]]) -> list[tuple[str, int, int]]:
    """Returns a slot's sources as (model, first layer, past the last), repeated models by their copies."""
    sources = []
    for (model, layer), name in zip(slot.layers, _copy_names(slot), strict=True):
        first = layer if name is None else copies[name].index((model, layer))
        sources.append((name or model_path(model), first, first + 1))
    return sources


def _stack(selections: Sequence[Slot]) -> Iterator[SliceDocument]:
    """Yields one slice for each run of layers that follow each other in one model."""
    for run in runs(selections):
        selection = selections[run.start]
        ((model, first),) = selection.layers
        yield _select_slice(model, first, first + len(run), selection.operation.inputs[0])


def _select_slice(model: str, first: int, past: int, settings: Settings = ()) -> SliceDocument:
    parameters = {"parameters": _parameters(settings)} if settings else {}
    return {"sources": [{"model": model, "layer_range": [first, past], **parameters}]}


def _merge_slice(sources: Sequence[tuple[str, int, int]], operation: Operation) -> SliceDocument:
    document: SliceDocument = {"sources": []}
    for (model, first, past), settings in zip(sources, operation.inputs, strict=True):
        document["sources"] += _select_slice(model, first, past, settings)["sources"]
    if operation.base is not None:
        document["base_model"] = sources[operation.base][0]
    if operation.shared:
        document["parameters"] = _parameters(operation.shared)
    return document


def _parameters(settings: Settings) -> dict[str, Any]:
    def document(value: Scalar | Filtered) -> Any:
        if not isinstance(value, tuple):
            return value
        return [{"value": v} if f is None else {"filter": f, "value": v} for f, v in value]

    return {name: document(value) for name, value in settings}
