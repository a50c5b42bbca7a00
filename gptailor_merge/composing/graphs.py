"""Replays small layers as CUDA graphs: one launch in place of dozens, which take longer than what they start.

A graph reads weights and inputs from where they were when it was recorded. So each graph has places of its
own, which a layer's weights and inputs are copied to: for a small layer that takes a few microseconds.
A replay runs the kernels that the layer itself would run, on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from gptailor_merge.models.architecture import INDEX_NAMES

SMALL_WORK = 1e11
"""Weights of a layer times tokens, up to which launching takes a GPU longer than computing."""


WARM_UPS = 2
"""Runs before a recording, in which libraries choose their kernels."""


Run = Callable[[], Any]

Recorder = Callable[[Run], tuple[Callable[[], None], Any]]
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
        self._known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._agrees: dict[Hashable, bool] = {}

    def run(
        self, layer: nn.Module, position: int, hidden: torch.Tensor, *arguments: Any, **named: Any
    ) -> Any:
        """Returns what a layer at a position returns; it is not differentiated.

        Args:
            hidden: its input [sequences, length, width].
        """
        known = self._known.get(layer) or self._known.setdefault(layer, _Known.of(layer))
        leaves, spec = tree_flatten(((hidden, *arguments), named))
        is_small = known.weights * hidden.shape[:-1].numel() <= SMALL_WORK
        if not is_small or not all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in leaves):
            return layer(hidden, *arguments, **named)
        key = (known.structure, spec, tuple(map(_kind, leaves)))
        agrees = self._agrees.get((key, position))
        graph = self._graphs.get(key)
        if agrees and graph is not None:
            return graph.replay(known, leaves)
        output = layer(hidden, *arguments, **named)
        if agrees is None:
            self._agrees[key, position] = self._replays(output, key, known, layer, leaves, spec)
        return output

    def _replays(
        self,
        output: Any,
        key: Hashable,
        known: _Known,
        layer: nn.Module,
        leaves: Sequence[Any],
        spec: TreeSpec,
    ) -> bool:
        """Tells whether a graph, which is recorded if there is none, returns the same output."""
        try:
            if key not in self._graphs:
                self._graphs[key] = None
                self._graphs[key] = _Graph(layer, known, leaves, spec, self._record)
            graph = self._graphs[key]
            replayed = None if graph is None else graph.replay(known, leaves)
        except Exception:  # a layer that asks the host something cannot be recorded
            return False
        ours, theirs = tree_flatten(replayed)[0], tree_flatten(output)[0]
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))


@dataclass(frozen=True, eq=False)
class _Known:
    """What is asked of a layer again and again.

    Attributes:
        structure: all that decides what a layer computes, besides its tensors' values and its position.
        tensors: parameters and buffers.
        weights: their number.
    """

    structure: Hashable
    tensors: list[torch.Tensor]
    weights: int

    @classmethod
    def of(cls, layer: nn.Module) -> _Known:
        modules = tuple((name, type(module), _settings(module)) for name, module in layer.named_modules())
        tensors = _tensors(layer)
        kinds = tuple((name, _kind(tensor)) for name, tensor in tensors.items())
        weights = sum(tensor.numel() for tensor in tensors.values())
        return cls((modules, kinds), list(tensors.values()), weights)


class _Graph:
    """A recorded layer with places for its tensors and its inputs."""

    def __init__(
        self, layer: nn.Module, known: _Known, leaves: Sequence[Any], spec: TreeSpec, record: Recorder
    ) -> None:
        tensors = {name: tensor.clone() for name, tensor in _tensors(layer).items()}
        places = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        arguments, named = tree_unflatten(places, spec)
        self._tensors, self._holds = list(tensors.values()), ref(known)
        self._inputs = _of_tensors(places)
        self._replay, output = record(lambda: functional_call(layer, tensors, arguments, named))
        self._outputs, self._spec = tree_flatten(output)

    def replay(self, known: _Known, leaves: Sequence[Any]) -> Any:
        """Returns what the layer returns, in tensors of its own."""
        if self._holds() is not known:
            torch._foreach_copy_(self._tensors, known.tensors)
            self._holds = ref(known)
        torch._foreach_copy_(self._inputs, _of_tensors(leaves))
        self._replay()
        outputs = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in self._outputs]
        return tree_unflatten(outputs, self._spec)


class CudaRecorder:
    """Records runs as CUDA graphs that share their memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Run) -> tuple[Callable[[], None], Any]:
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


def _of_tensors(leaves: Sequence[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


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
