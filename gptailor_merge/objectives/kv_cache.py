"""The kind `kv_cache`: how much memory a token of context takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from gptailor_merge.digests import digest
from gptailor_merge.objectives.costs import (
    CostConfig,
    CostPerModel,
    Shapes,
    bytes_in,
    cache_name,
    once_per_shape,
    prompt_ids,
)
from gptailor_merge.objectives.kinds import Context

CONTEXT = 4096
"""Tokens in the context, unless the config says otherwise."""


class KVCacheConfig(CostConfig):
    """Bytes of the KV cache per token of a context of `tokens` tokens."""

    kind: Literal["kv_cache"]

    def cost(self, context: Context) -> KVCache:
        """Makes the objective, for the dtype of the written model."""
        return KVCache(self.kind, context.out_dtype, self.tokens or CONTEXT)


@dataclass(frozen=True)
class KVCache(CostPerModel):
    """Bytes of the KV cache per token of context, in the dtype of the written model.

    Where layers have a sliding window or a state of fixed size this depends on the context: it is the
    whole cache after `tokens` tokens, divided by them.
    """

    name: str
    dtype: torch.dtype
    tokens: int
    unit = "bytes"
    _known: Shapes = field(default_factory=dict, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Depends on the dtype and the context."""
        return digest(["kv_cache", str(self.dtype), self.tokens])

    def of(self, model: PreTrainedModel) -> float:
        """Returns the bytes per token, measured once for each shape of model."""
        return once_per_shape(self._known, model, self._measured)

    def _measured(self, model: PreTrainedModel) -> float:
        output = model(prompt_ids(model, 1), use_cache=True)
        return sum(self._held(layer) for layer in output[cache_name(output)].layers) / self.tokens

    def _held(self, layer: Any) -> int:
        """Returns the bytes of a layer's cache, which has seen one token, after all tokens."""
        if isinstance(getattr(layer, "keys", None), torch.Tensor):
            # The cache itself knows what it keeps; on the meta device it needs no memory for that.
            layer.keys, layer.values = layer.keys.to("meta"), layer.values.to("meta")
            layer.update(*(_longer(states, self.tokens - 1) for states in (layer.keys, layer.values)))
        return sum(bytes_in(tensor, self.dtype) for tensor in state_tensors(vars(layer)))


def state_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yields the floating-point tensors in a value: itself, or those in a dictionary of any depth."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from state_tensors(item)


def _longer(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """Returns keys or values of `tokens` tokens, shaped as `states` [1, heads, tokens, width]."""
    return states.new_empty((*states.shape[:-2], tokens, states.shape[-1]))
