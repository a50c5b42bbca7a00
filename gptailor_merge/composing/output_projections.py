"""Finds the linear map that the attention or the MLP of a layer ends with, by watching the layer run.

The model runs once without weights (on the meta device). If a part of a layer returns the very tensor
that one of its linear modules returned, the part ends with that module: if the module is zero, the part
adds nothing, and a matrix product with its weight multiplies the part's result. Mixtures of experts
return a sum over experts, so they end with no such module.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from gptailor_merge.composing.adapter_places import placed_adapter
from gptailor_merge.composing.editing import Placed
from gptailor_merge.composing.norms import placed_gains
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.architecture import body_of, on_meta
from gptailor_merge.recipe.plan import ATTENTION, LORA, MLP, NORMS, PARTS, Edit

_NAMES = {ATTENTION: re.compile("attn|attention"), MLP: re.compile("mlp|feed_forward|ffn|moe")}
"""Part -> pattern of the names that layers give it."""


_TOKENS = 2
"""The length of the sequence that the model runs on."""


@dataclass(frozen=True)
class Exit:
    """The linear map that a part of a layer ends with.

    Attributes:
        tensors: the names, inside the layer, of the map's weight and of its bias, if it has one.
        changed_by: the module that changes the result before it is added to the hidden state, e.g. a
            norm; None if there is no such module.
        keeps_zero: True if that module returns zeros for zeros.
    """

    tensors: tuple[str, ...]
    changed_by: str | None = None
    keeps_zero: bool = True


def exit_of(config: Mapping[str, Any], layer: int, part: str) -> Exit:
    """Returns the exit of a part of a layer.

    Raises:
        FamilyError: the part does not end with a linear map, or could not be watched.
    """
    result = _exits(json.dumps(dict(config), sort_keys=True))[layer][part]
    if isinstance(result, str):
        raise FamilyError(f"the {part} of layer {layer} of {config['model_type']}: {result}")
    return result


def placed(edits: Sequence[Edit], config: Mapping[str, Any], layer: int | None) -> tuple[Placed, ...]:
    """Adds to edits the names of the tensors that they change.

    Args:
        layer: the layer of the slot's first source; None stands for the tensors outside the layers, of
            which only the norms can be edited.

    Raises:
        FamilyError: a part does not end with a linear map, or a later module changes its result so that
            the edit would not do what it says.
        RecipeError, FamilyError: gains of norms or an adapter do not fit, see placed_gains, placed_adapter.
    """
    placed_edits = []
    for edit in edits:
        if edit.part == NORMS:
            placed_edits.append(placed_gains(edit, config, layer))
            continue
        assert layer is not None
        if edit.part == LORA:
            placed_edits.append(placed_adapter(edit, config, layer))
            continue
        end = exit_of(config, layer, edit.part)
        label = f"the {edit.part} of layer {layer} of {config['model_type']}"
        if edit.digest is None and not end.keeps_zero:
            raise FamilyError(f"{label} cannot be left out: {end.changed_by} does not return zeros for zeros")
        if edit.digest is not None and end.changed_by is not None:
            raise FamilyError(f"{label} cannot be repaired: {end.changed_by} changes its result")
        placed_edits.append(Placed(edit, end.tensors))
    return tuple(placed_edits)


class _PartWatch:
    """Follows the output of one part of a layer while the layer runs.

    Attributes:
        outputs: path -> output of each linear module of the part.
        last: the part's output, after the modules that have changed it.
        result: the part's exit, or a sentence that says why there is none.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name, self.layer = name, layer
        self.outputs: dict[str, torch.Tensor] = {}
        self.result: Exit | str = "did not run"
        self.last: torch.Tensor | None = None

    def linear_ran(self, path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.outputs[path] = output

    def part_ran(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.last = output[0] if isinstance(output, tuple) else output
        paths = [path for path, tensor in self.outputs.items() if tensor is self.last]
        if len(paths) != 1:
            self.result = "it does not end with a linear map (as mixtures of experts do not)"
            return
        linear = self.layer.get_submodule(paths[0])
        self.result = Exit(tuple(f"{paths[0]}.{name}" for name, _ in linear.named_parameters()))

    def sibling_ran(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Notes a module of the layer that changes the part's output; dropout does not in evaluation."""
        if not any(tensor is self.last for tensor in inputs) or not isinstance(self.result, Exit):
            return
        self.last = output
        if not isinstance(module, nn.Dropout):
            end = self.result
            self.result = Exit(end.tensors, path, end.keeps_zero and _keeps_zero(module))


@lru_cache(maxsize=16)
def _exits(text: str) -> tuple[Mapping[str, Exit | str], ...]:
    model = on_meta(text).to(torch.bfloat16).eval()
    watches: list[dict[str, _PartWatch | str]] = [_watch(layer) for layer in body_of(model).layers]
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    # Without a mask the model would look at values, which do not exist on the meta device.
    mask = torch.ones(1, 1, _TOKENS, _TOKENS, dtype=torch.bool, device="meta")
    try:
        with torch.no_grad():
            body_of(model)(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False)
    except Exception as error:  # a model's own code may look at values
        reason = f"it cannot be watched without weights: {' '.join(str(error).split())}"
        return tuple(dict.fromkeys(PARTS, reason) for _ in watches)
    return tuple(
        {part: watch if isinstance(watch, str) else watch.result for part, watch in of_layer.items()}
        for of_layer in watches
    )


def _watch(layer: nn.Module) -> dict[str, _PartWatch | str]:
    """Hooks watches into a layer, one for each part; a sentence says why a part has none."""
    watches: dict[str, _PartWatch | str] = {}
    for part, pattern in _NAMES.items():
        fitting = [
            (name, child)
            for name, child in layer.named_children()
            if pattern.search(name) and "norm" not in name and any(True for _ in child.parameters())
        ]
        if len(fitting) != 1:
            watches[part] = f"expected one, found {', '.join(n for n, _ in fitting) or 'none'} in its layer"
            continue
        (name, block) = fitting[0]
        watch = watches[part] = _PartWatch(name, layer)
        for path, module in block.named_modules(prefix=name):
            if isinstance(module, nn.Linear):
                module.register_forward_hook(partial(watch.linear_ran, path))
        block.register_forward_hook(watch.part_ran)
        for path, sibling in layer.named_children():
            if path != name:
                sibling.register_forward_hook(partial(watch.sibling_ran, path))
    return watches


def _keeps_zero(module: nn.Module) -> bool:
    """Tells whether a small module returns zeros for zeros, by trying it with random weights."""
    trial = copy.deepcopy(module).to_empty(device="cpu").float()
    trial._forward_hooks.clear()
    width = 1
    for parameter in trial.parameters():
        nn.init.normal_(parameter)
        width = parameter.shape[-1]
    with torch.no_grad():
        return not bool(trial(torch.zeros(1, 1, width)).any())
