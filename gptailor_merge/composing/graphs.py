"""Replays small layers as CUDA graphs: one launch in place of dozens, which take longer than what they start.

A graph reads weights and inputs from where they were when it was recorded. So each graph has places of its
own, which a layer's weights and inputs are copied to: for a small layer that takes a few microseconds.
A replay runs the kernels that the layer itself would run, on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from gptailor_merge.models.architecture import INDEX_NAMES

SMALL_WORK = 1e11
"""Weights of a layer times tokens, up to which launching takes a GPU longer than computing."""


WARM_UPS = 2
"""Runs before a recording, in which libraries choose their kernels."""


Computation = Callable[[], Any]

Recorder = Callable[[Computation], tuple[Callable[[], None], Any]]
"""Records a run; returns what runs it again, and its output, which each run overwrites."""


class LayerGraphs:
    """Runs layers, those that are small enough by graphs.

    Layers of one structure share a graph. Before a graph stands for a position in the model it must give what
    the layer itself gives there, to the last bit; where it does not, or where a layer cannot be recorded, the
    layer itself is run from then on.

    Args:
        record: records a run; default as a CUDA graph.
    """

    def __init__(self, record: Recorder | None = None) -> None:
        self._record = record or CudaRecorder()
        self._numbers: dict[Hashable, int] = {}
        self._known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
        self._inputs = _Inputs((), {}, self._numbers)
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._agrees: dict[Hashable, bool] = {}

    def run(
        self, layer: nn.Module, position: int, hidden: torch.Tensor, *arguments: Any, **named: Any
    ) -> Any:
        """Returns what a layer at a position returns; it is not differentiated.

        Args:
            hidden: its input [sequences, length, width].
        """
        known = self._known.get(layer)
        if known is None:
            known = self._known[layer] = _Known.of(layer, self._numbers)
        if not self._inputs.are(arguments, named):  # all layers of a pass have the same
            self._inputs = _Inputs(arguments, named, self._numbers)
        inputs = self._inputs
        is_small = known.weights * hidden.shape[:-1].numel() <= SMALL_WORK
        if not is_small or inputs.kinds is None:
            return layer(hidden, *arguments, **named)
        key = (known.structure, hidden.shape, hidden.dtype, hidden.stride(), inputs.kinds)
        agrees = self._agrees.get((key, position))
        graph = self._graphs.get(key)
        if agrees and graph is not None:
            return graph.replay(known, hidden, inputs)
        output = layer(hidden, *arguments, **named)
        if agrees is None:
            self._agrees[key, position] = self._replays(output, key, layer, known, hidden, inputs)
        return output

    def _replays(
        self,
        output: Any,
        key: Hashable,
        layer: nn.Module,
        known: _Known,
        hidden: torch.Tensor,
        inputs: _Inputs,
    ) -> bool:
        """Tells whether a graph, which is recorded if there is none, returns the same output."""
        try:
            if key not in self._graphs:
                self._graphs[key] = None
                self._graphs[key] = _Graph(layer, known, hidden, inputs, self._record)
            graph = self._graphs[key]
            replayed = None if graph is None else graph.replay(known, hidden, inputs)
        except Exception:  # a layer that asks the host something cannot be recorded
            return False
        ours, theirs = tree_flatten(replayed)[0], tree_flatten(output)[0]
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))


@dataclass(frozen=True, eq=False)
class _Known:
    """Holds what is asked of a layer again and again.

    Attributes:
        structure: stands for all that decides what a layer computes, besides its tensors' values and its
            position.
        tensors: parameters and buffers.
        weights: their number.
    """

    structure: int
    tensors: list[torch.Tensor]
    weights: int

    @classmethod
    def of(cls, layer: nn.Module, numbers: dict[Hashable, int]) -> _Known:
        modules = tuple((name, type(module), _settings(module)) for name, module in layer.named_modules())
        tensors = _tensors(layer)
        kinds = tuple((name, _kind(tensor)) for name, tensor in tensors.items())
        weights = sum(tensor.numel() for tensor in tensors.values())
        structure = numbers.setdefault((modules, kinds), len(numbers))
        return cls(structure, list(tensors.values()), weights)


class _Inputs:
    """Holds what a layer is given besides hidden states: masks, positions, rotary embeddings.

    Attributes:
        leaves: of the tree that they are.
        tensors: those of them that are tensors.
        kinds: stands for what other inputs must have in common with these for a graph to stand for both;
            None where that cannot be told.
    """

    def __init__(
        self, arguments: tuple[Any, ...], named: dict[str, Any], numbers: dict[Hashable, int]
    ) -> None:
        self._arguments, self._named = arguments, named
        self.leaves, self.spec = tree_flatten((arguments, named))
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        self.kinds: int | None = None
        if all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in self.leaves):
            kinds = (self.spec, tuple(map(_kind, self.leaves)))
            self.kinds = numbers.setdefault(kinds, len(numbers))

    def are(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Tells whether these are the same objects."""
        mine = (*self._arguments, *self._named.values())
        theirs = (*arguments, *named.values())
        return self._named.keys() == named.keys() and len(mine) == len(theirs) and all(map(is_, mine, theirs))


class _Graph:
    """A recorded layer with places for its tensors and its inputs."""

    def __init__(
        self, layer: nn.Module, known: _Known, hidden: torch.Tensor, inputs: _Inputs, record: Recorder
    ) -> None:
        tensors = {name: tensor.clone() for name, tensor in _tensors(layer).items()}
        places = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in inputs.leaves]
        arguments, named = tree_unflatten(places, inputs.spec)
        self._hidden, self._tensors = hidden.clone(), list(tensors.values())
        self._places = [place for place in places if isinstance(place, torch.Tensor)]
        self._holds: tuple[Any, _Inputs] = (ref(known), inputs)
        self._replay, output = record(
            lambda: functional_call(layer, tensors, (self._hidden, *arguments), named)
        )
        self._outputs, self._spec = tree_flatten(output)

    def replay(self, known: _Known, hidden: torch.Tensor, inputs: _Inputs) -> Any:
        """Returns what the layer returns, in tensors of its own."""
        held, held_inputs = self._holds
        if held() is not known:
            torch._foreach_copy_(self._tensors, known.tensors)
        if held_inputs is not inputs:
            torch._foreach_copy_(self._places, inputs.tensors)
        self._holds = (ref(known), inputs)
        self._hidden.copy_(hidden)
        self._replay()
        outputs = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in self._outputs]
        return tree_unflatten(outputs, self._spec)


class CudaRecorder:
    """Records runs as CUDA graphs that share their memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Computation) -> tuple[Callable[[], None], Any]:
        """Records a run on the current device."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                run()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()
        return graph.replay, output


_PLAIN = (bool, int, float, str, type(None))
"""The types of settings and inputs whose values are part of what a graph stands for."""


def _tensors(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _settings(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Returns a module's plain attributes but for its position."""
    plain = ((n, v) for n, v in vars(module).items() if n not in INDEX_NAMES and isinstance(v, _PLAIN))
    return tuple(sorted((name, repr(value)) for name, value in plain))


def _kind(leaf: Any) -> Hashable:
    """Returns what an input must have in common with another for a graph to stand for both."""
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype, tuple(leaf.shape), leaf.stride(), leaf.device
    return type(leaf), leaf


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    return bool(ours == theirs)
