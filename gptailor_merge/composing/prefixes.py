"""Recipes that start alike share the work of their common prefix.

For one batch, models are run in the order of a trie over their slots. Each run begins at the deepest
hidden state that the previous runs left on the path; the model's own forward runs, with the layers
before it replaced by ones that compute nothing. Positions stay, so that masks and rotary embeddings
that depend on a layer's index are the right ones. Nothing is approximated: the same operations see
the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gptailor_merge.recipe.operations import Plan


def path_of(plan: Plan) -> tuple[Hashable, ...]:
    """What the hidden state after each slot depends on, slot by slot, besides the input."""
    first, *rest = plan.slots
    return ((plan.embeddings, first), *rest)


def trie_order(paths: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """The positions of the paths, those with a common prefix next to each other."""
    ordinals: dict[Hashable, int] = {}
    keys = [tuple(ordinals.setdefault(step, len(ordinals)) for step in path) for path in paths]
    return sorted(range(len(paths)), key=keys.__getitem__)


def common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """How many steps two paths share from their start."""
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared


class PrefixWalk:
    """Runs models on one batch; remembers the hidden states along one path.

    Memory is bounded by one path: at most one hidden state [sequences, length, width] per slot.

    Attributes:
        layers_run: layers that were computed.
    """

    def __init__(self, forward: Callable[[PreTrainedModel], torch.Tensor]) -> None:
        self._forward = forward
        self._steps: list[Hashable] = []
        self._states: list[Any] = []
        self.layers_run = 0

    def run(self, model: PreTrainedModel, path: Sequence[Hashable], keep: int) -> torch.Tensor:
        """The model's logits.

        Args:
            path: see path_of.
            keep: how many steps the next model shares with this one; deeper states are not kept.
        """
        known = common(self._steps, path)
        del self._steps[known:], self._states[known:]
        body = model.base_model
        layers = body.layers
        kept: list[Any] = []
        stand_ins: list[nn.Module] = [_Skip(layer) for layer in layers[:known]]
        if known:
            stand_ins[-1] = _Replay(layers[known - 1], self._states[-1])
        stand_ins += [_Record(layer, kept) for layer in layers[known:keep]]
        body.layers = nn.ModuleList([*stand_ins, *layers[max(known, keep) :]])
        try:
            logits = self._forward(model)
        finally:
            body.layers = layers
        self._states += kept
        self._steps += path[known : known + len(kept)]
        self.layers_run += len(layers) - known
        return logits


class _StandIn(nn.Module):
    """Stands in a layer's place; what a model asks a layer for, besides running it, is the layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_layer"), name)


class _Skip(_StandIn):
    """Computes nothing."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return hidden_states


class _Replay(_StandIn):
    """The last of the skipped layers: gives what it gave before."""

    def __init__(self, layer: nn.Module, state: Any) -> None:
        super().__init__(layer)
        self._state = state

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self._state


class _Record(_StandIn):
    """Runs the layer and keeps its output."""

    def __init__(self, layer: nn.Module, kept: list[Any]) -> None:
        super().__init__(layer)
        self._kept = kept

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = self._layer(*arguments, **named)
        self._kept.append(output)
        return output
