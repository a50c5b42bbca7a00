"""Recipes that start alike share the work of their common prefix.

The model's own forward runs, with the layers that need not be computed replaced by ones that compute
nothing. Positions stay, so that masks and rotary embeddings that depend on a layer's index are the
right ones. Nothing is approximated: the same operations see the same inputs.

There are two orders of work for a batch. `PrefixWalk` goes down one path after the other and
remembers the states of one path; it suits layers that are all at hand. `levels` goes down all paths
at once, layer by layer; it holds a state for every path, and asks for each layer once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from gptailor_merge.recipe.plan import Plan

Path = tuple[Hashable, ...]


State = Any
"""What a layer returns: hidden states [sequences, length, width]."""


class Branches(NamedTuple):
    """Where the rows of a batch hold token trees: what each token follows.

    Attributes:
        positions: of each token in its text, int64 [sequences, length].
        visible: which tokens each token sees, bool [sequences, 1, length, length].
    """

    positions: torch.Tensor
    visible: torch.Tensor


def path_of(plan: Plan) -> Path:
    """What the hidden state after each slot depends on, slot by slot, besides the input."""
    first, *rest = plan.slots
    return ((plan.embeddings, first), *rest)


def trie_order(paths: Sequence[Path]) -> list[int]:
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


def advance(
    model: PreTrainedModel,
    ids: torch.Tensor,
    state: State,
    layers: range,
    record: set[int],
    branches: Branches | None = None,
) -> list[State]:
    """Run some of a model's layers.

    Args:
        ids: token ids [sequences, length].
        state: what the layer before the first of `layers` gave; of no meaning from layer 0 on.
        layers: consecutive layers; the others compute nothing.
        record: the layers whose outputs are returned, in order; -1 beside 0 also returns what goes into
            the first.
        branches: None where each row is one text.
    """
    named = {}
    if branches is not None:
        named = {"position_ids": branches.positions, "attention_mask": branches.visible}
    body = model.base_model
    kept: list[State] = []
    with _replaced(body) as own:
        stand_ins: list[nn.Module] = []
        for index, layer in enumerate(own):
            if index in layers:
                before = index == 0 and -1 in record
                stand_ins.append(_Record(layer, kept, before=before) if index in record else layer)
            elif index == layers.start - 1:
                stand_ins.append(_Replay(layer, state))
            else:
                stand_ins.append(_Skip(layer))
        body.layers = nn.ModuleList(stand_ins)
        with torch.inference_mode():
            body(input_ids=ids, use_cache=False, **named)
    return kept


def head(model: PreTrainedModel, ids: torch.Tensor, state: State) -> torch.Tensor:
    """Logits [sequences, length, vocabulary] of what the last layer gave, by the model's own forward.

    `ids` and `state` may be any rows and positions of a batch: what follows the layers treats each
    position by itself.
    """
    body = model.base_model
    with _replaced(body) as own, torch.inference_mode():
        body.layers = nn.ModuleList([_Replay(own[0], state)])
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


class PrefixWalk:
    """Runs models on one batch; remembers the states along one path.

    Memory is bounded by one path: at most one hidden state [sequences, length, width] per slot.

    Attributes:
        layers_run: layers that were computed.
    """

    def __init__(self, ids: torch.Tensor, branches: Branches | None = None) -> None:
        self._ids, self._branches = ids, branches
        self._steps: list[Hashable] = []
        self._states: list[State] = []
        self.layers_run = 0

    def run(self, model: PreTrainedModel, path: Path, keep: int) -> State:
        """What the model's last layer gives.

        Args:
            path: see path_of.
            keep: how many steps the next model shares with this one; deeper states are not kept.
        """
        known = common(self._steps, path)
        del self._steps[known:], self._states[known:]
        depth = len(path)
        if known == depth:
            return self._states[-1]
        before = self._states[-1] if known else None
        record = {*range(known, keep), depth - 1}
        states = advance(model, self._ids, before, range(known, depth), record, self._branches)
        self.layers_run += depth - known
        kept = max(keep - known, 0)
        self._states += states[:kept]
        self._steps += path[known : known + kept]
        return states[-1]


def levels(paths: Sequence[Path], step: Callable[[int, int, State], State]) -> Iterator[tuple[int, State]]:
    """Go down all paths together; yield each as soon as it has ended, with its last state.

    At each depth the distinct steps follow each other, so that whoever fetches what a step needs
    fetches it once. States of paths that have parted are held side by side.

    Args:
        step: (position of a path, depth, state before) -> state after; called once per distinct
            prefix. None instead of a state ends all paths with this prefix.
    """
    states: dict[Path, State] = {(): None}
    for depth in range(max(map(len, paths), default=0)):
        running = {path[: depth + 1]: position for position, path in enumerate(paths) if len(path) > depth}
        by_step: dict[Hashable, list[Path]] = {}
        for prefix in running:
            by_step.setdefault(prefix[-1], []).append(prefix)
        after: dict[Path, State] = {}
        for prefixes in by_step.values():
            for prefix in prefixes:
                if prefix[:-1] in states:
                    state = step(running[prefix], depth, states[prefix[:-1]])
                    if state is not None:
                        after[prefix] = state
        states = after
        for position, path in enumerate(paths):
            if len(path) == depth + 1 and path in states:
                yield position, states[path]


@contextmanager
def _replaced(body: Any) -> Iterator[nn.ModuleList]:
    """Give the list of layers back when done."""
    layers = body.layers
    try:
        yield layers
    finally:
        body.layers = layers


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

    def __init__(self, layer: nn.Module, state: State) -> None:
        super().__init__(layer)
        self._state = state

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self._state


class _Record(_StandIn):
    """Runs the layer and keeps its output, and before it its input where that is wanted."""

    def __init__(self, layer: nn.Module, kept: list[State], *, before: bool) -> None:
        super().__init__(layer)
        self._kept, self._before = kept, before

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if self._before:
            self._kept.append(hidden_states)
        output = self._layer(hidden_states, *arguments, **named)
        self._kept.append(output)
        return output
