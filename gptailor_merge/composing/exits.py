"""The linear map that the attention or the MLP of a layer ends with, found by watching it run.

The model runs once without weights (on the meta device). The part of a layer whose result is the
very tensor that one linear module inside gave ends with that module: where it is zero the part adds
nothing, and a matrix product with its weight is one with the part's result. Mixtures of experts,
whose result is a sum over experts, end with no such module.
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

from gptailor_merge.composing.editing import Placed
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.architecture import layers_of, on_meta
from gptailor_merge.recipe.plan import ATTENTION, MLP, PARTS, Edit

_NAMES = {ATTENTION: re.compile("attn|attention"), MLP: re.compile("mlp|feed_forward|ffn|moe")}
"""What layers call their parts."""


_TOKENS = 2


@dataclass(frozen=True)
class Exit:
    """What a part of a layer ends with.

    Attributes:
        tensors: names, inside the layer, of the linear map's weight and, where it has one, its bias.
        changed_by: the module that changes the result before it is added to the hidden state, e.g. a
            norm, if there is one.
        keeps_zero: whether that module makes zeros of zeros.
    """

    tensors: tuple[str, ...]
    changed_by: str | None = None
    keeps_zero: bool = True


def exit_of(config: Mapping[str, Any], layer: int, part: str) -> Exit:
    """What a part of a layer ends with.

    Raises:
        FamilyError: it cannot be told.
    """
    found = _exits(json.dumps(dict(config), sort_keys=True))[layer][part]
    if isinstance(found, str):
        raise FamilyError(f"the {part} of layer {layer} of {config['model_type']}: {found}")
    return found


def placed(edits: Sequence[Edit], config: Mapping[str, Any], layer: int) -> tuple[Placed, ...]:
    """Edits with the names of the tensors that they are of.

    Raises:
        FamilyError: a part that does not end with a linear map, or whose result is changed behind it
            in such a way that the edit would not do what it says.
    """
    found = []
    for edit in edits:
        ends = exit_of(config, layer, edit.part)
        label = f"the {edit.part} of layer {layer} of {config['model_type']}"
        if edit.digest is None and not ends.keeps_zero:
            raise FamilyError(f"{label} cannot be left out: {ends.changed_by} makes no zeros of zeros")
        if edit.digest is not None and ends.changed_by is not None:
            raise FamilyError(f"{label} cannot be repaired: {ends.changed_by} changes what it gives")
        found.append(Placed(edit, ends.tensors))
    return tuple(found)


class _Watched:
    """What one part of a layer gave, and what became of it inside the layer."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name, self.layer = name, layer
        self.given: dict[str, torch.Tensor] = {}
        self.result: Exit | str = "did not run"
        self.last: torch.Tensor | None = None

    def inner(self, path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.given[path] = output

    def whole(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self.last = output[0] if isinstance(output, tuple) else output
        paths = [path for path, tensor in self.given.items() if tensor is self.last]
        if len(paths) != 1:
            self.result = "it does not end with a linear map (as mixtures of experts do not)"
            return
        linear = self.layer.get_submodule(paths[0])
        self.result = Exit(tuple(f"{paths[0]}.{name}" for name, _ in linear.named_parameters()))

    def beside(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Another module of the layer ran; dropout does nothing in evaluation."""
        if not any(tensor is self.last for tensor in inputs) or not isinstance(self.result, Exit):
            return
        self.last = output
        if not isinstance(module, nn.Dropout):
            ends = self.result
            self.result = Exit(ends.tensors, path, ends.keeps_zero and _keeps_zero(module))


@lru_cache(maxsize=16)
def _exits(text: str) -> tuple[Mapping[str, Exit | str], ...]:
    model = on_meta(text).to(torch.bfloat16).eval()
    watched: list[dict[str, _Watched | str]] = [_watch(layer) for layer in layers_of(model)]
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    # A mask that is given needs no look at values, which are not there.
    mask = torch.ones(1, 1, _TOKENS, _TOKENS, dtype=torch.bool, device="meta")
    try:
        with torch.no_grad():
            model.base_model(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False)
    except Exception as error:  # a model's own code, which may look at values
        reason = f"it cannot be watched without weights: {' '.join(str(error).split())}"
        return tuple(dict.fromkeys(PARTS, reason) for _ in watched)
    return tuple(
        {part: one if isinstance(one, str) else one.result for part, one in layer.items()}
        for layer in watched
    )


def _watch(layer: nn.Module) -> dict[str, _Watched | str]:
    found: dict[str, _Watched | str] = {}
    for part, pattern in _NAMES.items():
        fitting = [
            (name, child)
            for name, child in layer.named_children()
            if pattern.search(name) and "norm" not in name and any(True for _ in child.parameters())
        ]
        if len(fitting) != 1:
            found[part] = f"expected one, found {', '.join(n for n, _ in fitting) or 'none'} in its layer"
            continue
        (name, block) = fitting[0]
        one = found[part] = _Watched(name, layer)
        for path, module in block.named_modules(prefix=name):
            if isinstance(module, nn.Linear):
                module.register_forward_hook(partial(one.inner, path))
        block.register_forward_hook(one.whole)
        for path, sibling in layer.named_children():
            if path != name:
                sibling.register_forward_hook(partial(one.beside, path))
    return found


def _keeps_zero(module: nn.Module) -> bool:
    """Whether a small module makes zeros of zeros, tried with random weights."""
    tried = copy.deepcopy(module).to_empty(device="cpu").float()
    tried._forward_hooks.clear()
    width = 1
    for parameter in tried.parameters():
        nn.init.normal_(parameter)
        width = parameter.shape[-1]
    with torch.no_grad():
        return not bool(tried(torch.zeros(1, 1, width)).any())
