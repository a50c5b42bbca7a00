"""Merges tensors by mergekit's own arithmetic; composing in memory and `mergekit-yaml` both call `apply`."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import (
    MergeMethod,
    ParameterScope,
    ParameterSpec,
    TensorGroup,
)

from gptailor_merge.recipe.plan import SELECT, Filtered, Operation, Scalar


def name_in_layer(tensor_name: str) -> str:
    """Returns a tensor's name without what stands before its layer's tensors.

    Filters and random seeds use this name, so that a merge does not depend on its slot.

    >>> name_in_layer("model.layers.7.self_attn.q_proj.weight")
    'self_attn.q_proj.weight'
    >>> name_in_layer("lm_head.weight")
    'lm_head.weight'
    """
    return re.sub(r"^.*?\.\d+\.", "", tensor_name)


def apply(operation: Operation, tensors: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    """Merges the sources' tensors into one.

    Methods that draw random numbers (DARE, DELLA) draw them from a seed made of the operation and
    the tensor's name: the same recipe gives the same weights everywhere.

    Args:
        tensors: one per source, all of one shape and on one device, in the dtypes that mergekit would
            hand to the method.
        name: name of the output tensor.

    Returns:
        The merged tensor; a selection without a scale returns the source's tensor itself, not a copy.
    """
    if operation.method == SELECT and not any(operation.inputs):
        return tensors[0]
    method = registry.get(operation.method)
    group = TensorGroup.from_tensors(tensors, base_index=operation.base, name=name)
    group.validate_tensors()
    parameters, seed = _bound_parameters(operation, name_in_layer(name))
    generator = _generator(tensors[0].device)
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        with torch.no_grad():
            (result,) = method._execute_resolved((group,), [parameters])
    finally:
        generator.set_state(state)
    return result  # type: ignore[no-any-return]


@lru_cache(maxsize=4096)
def _bound_parameters(operation: Operation, name: str) -> tuple[dict[str, Any], int]:
    """Returns (parameters checked by mergekit, random seed) for the tensor of that name in any layer.

    Results are cached, since binding takes as long as merging a small tensor.
    """
    method = registry.get(operation.method)
    placeholders = [torch.empty(0) for _ in operation.inputs]
    group = TensorGroup.from_tensors(placeholders, base_index=operation.base, name=name)
    parameters = method._bind_parameters((group,), _resolve(method, operation, name))[0]
    return parameters, zlib.crc32(f"{operation.to_json()}\n{name}".encode())


def _generator(device: torch.device) -> torch.Generator:
    """Returns the generator of a device's random numbers.

    torch.manual_seed would seed all devices; it takes longer than merging a small tensor.
    """
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return torch.cuda.default_generators[device.index or 0]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator


def _resolve(method: MergeMethod, operation: Operation, name: str) -> dict[str, Any]:
    """Returns the parameters for one tensor as a call of mergekit's method takes them."""
    shared = dict(operation.shared)
    inputs = [dict(settings) for settings in operation.inputs]
    resolved: dict[str, Any] = {}
    for parameter in method.spec.parameters:
        if parameter.scope is ParameterScope.SHARED:
            value = _pick(shared, parameter, name)
            if value is not _ABSENT:
                resolved[parameter.name] = value
            continue
        values = {}
        for position, settings in enumerate(inputs):
            value = _pick(settings, parameter, name)
            if value is _ABSENT and not parameter.required:
                value = parameter.default
            if value is not _ABSENT:
                values[position] = value
        resolved[parameter.name] = values
    return resolved


_ABSENT = object()


def _pick(settings: Mapping[str, Scalar | Filtered], parameter: ParameterSpec, name: str) -> Any:
    """Returns a parameter's value for the tensor of that name, or _ABSENT."""
    value = settings.get(parameter.name, _ABSENT)
    if not isinstance(value, tuple):
        return value
    matches = (v for f, v in value if f is None or f == "*" or f in name)
    return next(matches, _ABSENT)
