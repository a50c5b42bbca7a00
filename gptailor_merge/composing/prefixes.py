"""Computes common prefixes of plans once.

The model's own forward runs; layers that need not be computed are replaced by stand-ins that compute
nothing. Layers keep their positions, so that masks and rotary embeddings that depend on a layer's index
are right. Nothing is approximated: the same operations see the same inputs.

A batch can be worked through in two orders. `PrefixWalk` goes down one path after the other and stores
the states of one path; it suits layers that are all on the device. `levels` goes down all paths at once,
layer by layer; it stores a state for every path and asks for each layer once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from gptailor_merge.composing.graphs import LayerGraphs
from gptailor_merge.models.architecture import body_of
from gptailor_merge.recipe.plan import Plan

Path = tuple[Hashable, ...]
"""One step per slot; two plans with equal first steps have equal hidden states after these slots."""


State = Any
"""The output of a layer: hidden states [sequences, length, width]."""


class Branches(NamedTuple):
    """Positions and attention mask of a batch whose rows hold token trees.

    Attributes:
        positions: the position of each token in its text, int64 [sequences, length].
        visible: True for the tokens that each token sees, bool [sequences, 1, length, length].
    """

    positions: torch.Tensor
    visible: torch.Tensor


def path_of(plan: Plan) -> Path:
    """Returns a plan's path: all that the hidden state after each slot depends on, besides the input."""
    first, *rest = plan.adapted_slots
    # A norm outside the layers may stand before them.
    return ((plan.embeddings, *plan.outer_edits, first), *rest)


def trie_order(paths: Sequence[Path]) -> list[int]:
    """Returns the positions of the paths in an order that puts common prefixes next to each other.

    >>> trie_order(["ab", "cd", "ac"])
    [0, 2, 1]
    """
    ordinals: dict[Hashable, int] = {}
    keys = [tuple(ordinals.setdefault(step, len(ordinals)) for step in path) for path in paths]
    return sorted(range(len(paths)), key=keys.__getitem__)


def common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Returns the number of steps that two paths share from their start.

    >>> common("abc", "abd")
    2
    """
    shared = 0
    for step, second_step in zip(first, second, strict=False):
        if step != second_step:
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
    *,
    gradients: bool = False,
    graphs: LayerGraphs | None = None,
) -> list[State]:
    """Runs consecutive layers of a model and returns the outputs of some of them.

    Args:
        ids: token ids [sequences, length].
        state: the output of the layer before `layers`; unused if they start at layer 0.
        layers: the layers to run; the others compute nothing.
        record: the layers whose outputs are returned, in order; -1 together with 0 also returns the
            input of layer 0.
        branches: positions and mask of token trees; None if each row is one text.
        gradients: whether the outputs are to be differentiated.
        graphs: runs the layers, where nothing is differentiated; None runs them as they are.
    """
    arguments = {}
    if branches is not None:
        arguments = {"position_ids": branches.positions, "attention_mask": branches.visible}
    body = body_of(model)
    outputs: list[State] = []
    with _layers_restored(body) as body_layers:
        stand_ins: list[nn.Module] = []
        for index, layer in enumerate(body_layers):
            if index in layers:
                with_input = index == 0 and -1 in record
                is_recorded = index in record
                runs = layer if graphs is None else _ByGraph(layer, index, graphs)
                stand_ins.append(_Record(runs, outputs, with_input=with_input) if is_recorded else runs)
            elif index == layers.start - 1:
                stand_ins.append(_Replay(layer, state))
            else:
                stand_ins.append(_Skip(layer))
        body.layers = nn.ModuleList(stand_ins)
        with torch.inference_mode(not gradients):
            body(input_ids=ids, use_cache=False, **arguments)
    return outputs


def head(model: PreTrainedModel, ids: torch.Tensor, state: State, *, gradients: bool = False) -> torch.Tensor:
    """Returns the logits [sequences, length, vocabulary] of the last layer's output.

    `ids` and `state` may be any rows and positions of a batch, since the modules after the layers treat
    each position by itself.
    """
    body = body_of(model)
    with _layers_restored(body) as body_layers, torch.inference_mode(not gradients):
        body.layers = nn.ModuleList([_Replay(body_layers[0], state)])
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


class PrefixWalk:
    """Runs models on one batch and stores the states along one path.

    Memory is bounded by one path: at most one hidden state [sequences, length, width] per slot.

    Attributes:
        layers_run: the number of layers computed so far.
    """

    def __init__(
        self, ids: torch.Tensor, branches: Branches | None = None, graphs: LayerGraphs | None = None
    ) -> None:
        self._ids, self._branches, self._graphs = ids, branches, graphs
        self._steps: list[Hashable] = []
        self._states: list[State] = []
        self.layers_run = 0

    def run(self, model: PreTrainedModel, path: Path, keep: int) -> State:
        """Returns the output of the model's last layer.

        Args:
            path: the path of the model's plan, see path_of.
            keep: the number of steps that the next path shares with this one; deeper states are not
                stored.
        """
        known = common(self._steps, path)
        del self._steps[known:], self._states[known:]
        depth = len(path)
        if known == depth:
            return self._states[-1]
        start = self._states[-1] if known else None
        record = {*range(known, keep), depth - 1}
        layers = range(known, depth)
        states = advance(model, self._ids, start, layers, record, self._branches, graphs=self._graphs)
        self.layers_run += depth - known
        shared = max(keep - known, 0)
        self._states += states[:shared]
        self._steps += path[known : known + shared]
        return states[-1]


def levels(
    paths: Sequence[Path],
    step: Callable[[int, int, State], State],
    ahead: Callable[[int, int], None] = lambda position, depth: None,
) -> Iterator[tuple[int, State]]:
    """Goes down all paths together; yields (position, last state) for each path as soon as it ends.

    At each depth equal steps follow each other, so that the layer of a step is fetched once. Paths that
    have parted have a state each.

    Args:
        step: (position of a path, depth, state before) -> state after; called once per distinct prefix.
            If it returns None, all paths with this prefix end without a result.
        ahead: told of each layer, by (position of a path, depth), before the layer in front of it computes.
    """
    groups = list(_groups(paths))
    states: dict[Path, State] = {(): None}
    after: dict[Path, State] = {}
    for number, (depth, group) in enumerate(groups):
        for coming_depth, coming in groups[number and number + 1 : number + 2]:
            ahead(next(iter(coming.values())), coming_depth)
        for prefix, position in group.items():
            if prefix[:-1] in states:
                state = step(position, depth, states[prefix[:-1]])
                if state is not None:
                    after[prefix] = state
        if number + 1 < len(groups) and groups[number + 1][0] == depth:
            continue
        states, after = after, {}
        for position, path in enumerate(paths):
            if len(path) == depth + 1 and path in states:
                yield position, states[path]


def _groups(paths: Sequence[Path]) -> Iterator[tuple[int, dict[Path, int]]]:
    """Yields, depth by depth, the prefixes that end with one step, each with the position of a path."""
    for depth in range(max(map(len, paths), default=0)):
        running = {path[: depth + 1]: position for position, path in enumerate(paths) if len(path) > depth}
        by_step: dict[Hashable, dict[Path, int]] = {}
        for prefix, position in running.items():
            by_step.setdefault(prefix[-1], {})[prefix] = position
        for group in by_step.values():
            yield depth, group


@contextmanager
def _layers_restored(body: Any) -> Iterator[nn.ModuleList]:
    """Yields a body's list of layers, and puts it back when the block ends."""
    layers = body.layers
    try:
        yield layers
    finally:
        body.layers = layers


class StandIn(nn.Module):
    """Stands in a layer's place; attributes that a model asks it for are the layer's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_layer"), name)


class _Skip(StandIn):
    """Computes nothing."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return hidden_states


class _Replay(StandIn):
    """Returns a stored state; stands for the last of the skipped layers."""

    def __init__(self, layer: nn.Module, state: State) -> None:
        super().__init__(layer)
        self._state = state

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return self._state


class _ByGraph(StandIn):
    """Runs the layer by a graph."""

    def __init__(self, layer: nn.Module, position: int, graphs: LayerGraphs) -> None:
        super().__init__(layer)
        self._position, self._graphs = position, graphs

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return self._graphs.run(self._layer, self._position, hidden_states, *arguments, **named)


class _Record(StandIn):
    """Runs the layer and appends its output, preceded by its input if asked to, to a list."""

    def __init__(self, layer: nn.Module, states: list[State], *, with_input: bool) -> None:
        super().__init__(layer)
        self._states, self._with_input = states, with_input

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if self._with_input:
            self._states.append(hidden_states)
        output = self._layer(hidden_states, *arguments, **named)
        self._states.append(output)
        return output
