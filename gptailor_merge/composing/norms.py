"""Finds the norms of a model, and places the gains that a recipe gives them.

The model is built without weights (on the meta device). A norm is a module whose class is called so; its
gain is its weight, if that has one dimension.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from gptailor_merge.composing.editing import Placed, load_gains
from gptailor_merge.errors import FamilyError, RecipeError
from gptailor_merge.models.architecture import Architecture, Shape, layers_of, on_meta
from gptailor_merge.recipe.plan import NORMS, Edit, Plan

_IN_LAYER = re.compile(r"layers\.([0-9]{1,6})\.")
"""The beginning of the name of a layer's gain in a file."""


_Names = tuple[str, ...] | str
"""Names of gains, or a sentence that says why they cannot be set."""


def norms_of(config: Mapping[str, Any], layer: int) -> tuple[str, ...]:
    """Returns the names, inside a layer, of the gains of its norms.

    Raises:
        FamilyError: the layer has no norm with a gain, or shares one with another norm.
    """
    return _gains_of(config, layer)


def outer_norms(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the gains of the norms outside the layers, e.g. of the final norm.

    Raises:
        FamilyError: there is no such norm with a gain, or it shares one with another norm.
    """
    return _gains_of(config, None)


def placed_gains(edit: Edit, config: Mapping[str, Any], layer: int | None) -> Placed:
    """Adds to an edit of gains the names of those that its file has for a layer.

    Args:
        layer: the layer of the slot's first source; None means the norms outside the layers.

    Raises:
        RecipeError: the file cannot be read, has no gain for the layer, or has what the layer has not.
        FamilyError: the layer has no norms with gains of their own.
    """
    assert edit.digest is not None
    gains = load_gains(edit.file, edit.digest)
    architecture = Architecture.of(config)
    if layer is None:
        place, prefix, names = "outside the layers", "", outer_norms(config)
        shapes: Mapping[str, Shape] = {**architecture.before, **architecture.after}
    else:
        place, prefix, names = f"of layer {layer}", f"layers.{layer}.", norms_of(config, layer)
        shapes = architecture.layers[layer]
    given = {key: gain for key, gain in gains.items() if _layer(key) == layer}
    expected = ", ".join(prefix + name for name in names)
    if not given:
        raise RecipeError(f"{edit.file} has no gains of the norms {place}; expected some of {expected}")
    for key, gain in given.items():
        name = key.removeprefix(prefix)
        if name not in names:
            raise RecipeError(
                f"{edit.file} has {key}, and the norms {place} have no such gain; expected some of {expected}"
            )
        if tuple(gain.shape) != shapes[name]:
            raise RecipeError(
                f"{key} in {edit.file} is {list(gain.shape)}, and the norm takes {list(shapes[name])}"
            )
    return Placed(edit, tuple(key.removeprefix(prefix) for key in given), prefix)


def with_gains(plan: Plan, gains: Edit) -> Plan:
    """Returns a plan whose norms have the gains of a file, wherever the file has some, and no others.

    Raises:
        RecipeError: the file cannot be read.
    """
    assert gains.digest is not None
    layers = {_layer(name) for name in load_gains(gains.file, gains.digest)}
    slots = []
    for slot in plan.slots:
        edits = tuple(edit for edit in slot.edits if edit.part != NORMS)
        slots.append(replace(slot, edits=(*edits, gains) if slot.layers[0][1] in layers else edits))
    return replace(plan, slots=tuple(slots), gains=gains if None in layers else None)


def check_gains(edit: Edit, config: Mapping[str, Any]) -> None:
    """Checks all gains of a file, also those that no slot of a recipe takes.

    Raises:
        RecipeError, FamilyError: see `placed_gains`.
    """
    assert edit.digest is not None
    depth = len(Architecture.of(config).layers)
    layers = {_layer(key): key for key in load_gains(edit.file, edit.digest)}
    for layer, key in layers.items():
        if layer is not None and layer >= depth:
            raise RecipeError(f"{edit.file} has {key}, and the model has {depth} layers")
        placed_gains(edit, config, layer)


def _layer(key: str) -> int | None:
    """Returns the layer that a gain's name in a file names; None where it is outside the layers."""
    match = _IN_LAYER.match(key)
    return int(match[1]) if match else None


def _gains_of(config: Mapping[str, Any], layer: int | None) -> tuple[str, ...]:
    in_layers, outside = _norms(json.dumps(dict(config), sort_keys=True))
    result = outside if layer is None else in_layers[layer]
    if isinstance(result, str):
        place = "outside the layers" if layer is None else f"of layer {layer}"
        raise FamilyError(f"the norms {place} of {config['model_type']} cannot be set: {result}")
    return result


@lru_cache(maxsize=16)
def _norms(text: str) -> tuple[tuple[_Names, ...], _Names]:
    """Returns what `_names` returns for each layer, and for the norms outside the layers."""
    model = on_meta(text)
    layers = layers_of(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    prefix = next(path for path, module in modules.items() if module is layers)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    shared = [names for names in owners.values() if len(names) > 1]
    shared += [list(pair) for pair in model.all_tied_weights_keys.items()]
    twins = {name: next(other for other in names if other != name) for names in shared for name in names}

    def names(start: str) -> _Names:
        return _names(
            {path: module for path, module in modules.items() if path.startswith(start)}, start, twins
        )

    rest = Architecture.of(json.loads(text)).rest  # a vision tower has norms of its own
    outside = {
        path: module
        for path, module in modules.items()
        if not path.startswith(f"{prefix}.") and f"{path}.weight" not in rest
    }
    in_layers = tuple(names(f"{prefix}.{index}.") for index in range(len(layers)))
    return in_layers, _names(outside, "", twins)


def _names(modules: Mapping[str, nn.Module], prefix: str, twins: Mapping[str, str]) -> _Names:
    """Returns the names of the gains of the norms among modules, or a sentence that says why there are none.

    Args:
        modules: path -> module.
        prefix: what the names are to lack.
        twins: name of a parameter -> another name of the same one.
    """
    norms = {path: module for path, module in modules.items() if "Norm" in type(module).__name__}
    gains = []
    for path, norm in norms.items():
        weight = norm._parameters.get("weight")
        if weight is None or weight.dim() != 1:
            continue
        name = f"{path}.weight"
        if name in twins:
            return f"{name} and {twins[name]} are one tensor"
        gains.append(name.removeprefix(prefix))
    kinds = ", ".join(sorted({type(norm).__name__ for norm in norms.values()})) or "no norms"
    return tuple(gains) or f"found {kinds}, and no gain of one dimension"
