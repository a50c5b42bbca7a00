"""What a model costs: parameters, bytes, KV cache, and time on this device.

A cost depends on how many layers of which kinds a model has. What takes running a model is measured once
for each such shape, so that candidates of one shape have one number.
"""

from __future__ import annotations

import inspect
import platform
import statistics
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gptailor_merge.digests import digest
from gptailor_merge.models.architecture import Architecture
from gptailor_merge.objectives.protocols import ModelObjective, PerUnit, UnitSet

CostKind = Literal["parameters", "bytes", "kv_cache", "prefill_latency", "decode_latency"]


CONTEXT = 4096
"""Tokens that a KV cache is measured after."""


PROMPT = 512
"""Tokens of the prompt that latencies are measured with."""


DECODED = 32
"""Tokens that are generated for a latency."""


WARM_UP, REPEATS = 2, 7
"""Runs before those that are timed, and these."""


def cost(
    kind: CostKind, name: str, *, dtype: torch.dtype, device: torch.device, tokens: int | None = None
) -> ModelObjective:
    """An objective of a kind.

    Args:
        dtype: of the written model; for bytes and the KV cache.
        device: where models run; for latencies.
        tokens: of the KV cache's context, of the latencies' prompt; default CONTEXT and PROMPT.
    """
    if kind == "parameters":
        return Parameters(name)
    if kind == "bytes":
        return Bytes(name, dtype)
    if kind == "kv_cache":
        return KVCache(name, dtype, tokens or CONTEXT)
    return Latency(name, kind, tokens or PROMPT, _described(device))


class _PerModel(PerUnit, ABC):
    """What objectives share that give a model one number, the less the better."""

    direction = "minimize"

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """See Objective."""

    @property
    def sets(self) -> tuple[UnitSet, ...]:
        """The model itself."""
        return (UnitSet("model", self.fingerprint, 1),)

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        return np.array([self.of(model)], dtype=np.float64)

    @abstractmethod
    def of(self, model: PreTrainedModel) -> float:
        """The number."""


@dataclass(frozen=True)
class Parameters(_PerModel):
    """How many numbers a model stores; what is tied counts once."""

    name: str
    unit = "count"

    @property
    def fingerprint(self) -> str:
        return digest(["parameters"])

    def of(self, model: PreTrainedModel) -> float:
        return sum(tensor.numel() for tensor in _stored(model))


@dataclass(frozen=True)
class Bytes(_PerModel):
    """What the weights take in the dtype of the written model."""

    name: str
    dtype: torch.dtype
    unit = "bytes"

    @property
    def fingerprint(self) -> str:
        return digest(["bytes", str(self.dtype)])

    def of(self, model: PreTrainedModel) -> float:
        return sum(_bytes(tensor, self.dtype) for tensor in _stored(model))


@dataclass(frozen=True)
class KVCache(_PerModel):
    """Bytes of the KV cache per token of context, in the dtype of the written model.

    Where layers have a sliding window or a state of fixed size this depends on the context: it is the
    whole cache after `tokens` tokens, divided by them.
    """

    name: str
    dtype: torch.dtype
    tokens: int
    unit = "bytes"
    _known: dict[Hashable, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        return digest(["kv_cache", str(self.dtype), self.tokens])

    def of(self, model: PreTrainedModel) -> float:
        return _once_per_shape(self._known, model, self._measured)

    def _measured(self, model: PreTrainedModel) -> float:
        output = model(_prompt(model, 1), use_cache=True)
        return sum(self._held(layer) for layer in output[_cache(output)].layers) / self.tokens

    def _held(self, layer: Any) -> int:
        """What a layer's cache, which has seen one token, holds after the others."""
        if isinstance(getattr(layer, "keys", None), torch.Tensor):
            # The cache itself knows what it keeps; on the meta device it needs no memory for that.
            layer.keys, layer.values = layer.keys.to("meta"), layer.values.to("meta")
            layer.update(*(_tokens_like(one, self.tokens - 1) for one in (layer.keys, layer.values)))
        return sum(_bytes(tensor, self.dtype) for tensor in _tensors(vars(layer)))


@dataclass(frozen=True)
class Latency(_PerModel):
    """Milliseconds that a model takes on this device, alone: the median of several runs.

    Attributes:
        kind: prefill is a whole prompt; decode is one token behind it, with the KV cache.
        tokens: of the prompt, as far as the model's context holds them.
        device: what it is; times of others are not comparable.
    """

    name: str
    kind: Literal["prefill_latency", "decode_latency"]
    tokens: int
    device: str
    unit = "ms"
    _known: dict[Hashable, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        return digest([self.kind, self.tokens, self.device])

    def of(self, model: PreTrainedModel) -> float:
        return _once_per_shape(self._known, model, self._measured)

    def _measured(self, model: PreTrainedModel) -> float:
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        prompt = _prompt(model, min(self.tokens, max(1, (longest or self.tokens + DECODED) - DECODED)))
        run = _prefill if self.kind == "prefill_latency" else _decode
        times = [run(model, prompt) for _ in range(WARM_UP + REPEATS)]
        return 1000 * statistics.median(times[WARM_UP:])


def _prefill(model: PreTrainedModel, prompt: torch.Tensor) -> float:
    """Seconds."""
    begun = _now(model.device)
    model(prompt, use_cache=True, **_last_only(model))
    return _now(model.device) - begun


def _decode(model: PreTrainedModel, prompt: torch.Tensor) -> float:
    """Seconds per token, greedily."""
    output = model(prompt, use_cache=True, **_last_only(model))
    begun = _now(model.device)
    for _ in range(DECODED):
        token = output.logits[:, -1:].argmax(-1)
        name = _cache(output)
        output = model(token, **{name: output[name]}, use_cache=True)
    return (_now(model.device) - begun) / DECODED


def _now(device: torch.device) -> float:
    """Seconds, after all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _cache(output: Any) -> str:
    """What a model's output calls its cache; transformers has renamed it in 5.24."""
    return "cache" if hasattr(output, "cache") else "past_key_values"


def _last_only(model: PreTrainedModel) -> dict[str, int]:
    """As generation does: of a prompt only the last position needs logits."""
    name = "logits_to_keep"
    return {name: 1} if name in inspect.signature(model.forward).parameters else {}


def _prompt(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Some ids [1, tokens]: times and sizes do not depend on which."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    return (torch.arange(tokens, device=model.device) % rows)[None]


def _stored(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """The tensors that a checkpoint holds; what is tied once."""
    yield from model.parameters()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def _bytes(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    """What a tensor takes where its floating-point numbers have a dtype."""
    return tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.itemsize)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors in a value, its own or in its tables."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _tokens_like(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """Keys or values of so many tokens, shaped as those of others [1, heads, tokens, width]."""
    return states.new_empty((*states.shape[:-2], tokens, states.shape[-1]))


def _once_per_shape(
    known: dict[Hashable, float], model: PreTrainedModel, measure: Callable[[PreTrainedModel], float]
) -> float:
    kinds = Counter(Architecture.of(model.config.to_dict()).kinds)
    shape = (frozenset(kinds.items()), tuple(model.get_input_embeddings().weight.shape), model.dtype)
    if shape not in known:
        known[shape] = measure(model)
    return known[shape]


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.processor()} {device.type} {torch.get_num_threads()}"
