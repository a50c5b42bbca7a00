"""A layer whose weights are a merge with weights that gradients reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from gptailor_merge.composing.prefixes import StandIn
from gptailor_merge.tuning.groups import Groups


@dataclass(frozen=True, eq=False)
class Ingredients:
    """The tensors that one layer is merged of, by their names inside the layer.

    Attributes:
        base: the base's tensors.
        members: those of the other sources.
        maps: name -> repair map that the merged tensor is multiplied with, float32 [width, width].
        zeros: names of tensors that are zero, whatever the members have.
    """

    base: Mapping[str, torch.Tensor]
    members: tuple[Mapping[str, torch.Tensor], ...]
    maps: Mapping[str, torch.Tensor]
    zeros: frozenset[str] = frozenset()


class TunableLayer(StandIn):
    """Merges its weights whenever it runs, forwards and backwards, so that no merged layer is kept.

    W = W_base + Σ_k w_k (W_k - W_base), the task arithmetic of arXiv 2212.04089, with one w_k per member
    and group of tensors.

    Attributes:
        weights: merge weights [groups, members], float32.
        gains: name inside the layer -> the gain of a norm, in place of the merged one.
    """

    def __init__(
        self,
        layer: nn.Module,
        ingredients: Ingredients,
        groups: Groups,
        weights: torch.Tensor,
        gains: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(layer)
        self.weights = nn.Parameter(weights)
        self._gain_names = tuple(gains)
        self.gain_values = nn.ParameterList([nn.Parameter(gain) for gain in gains.values()])
        self._ingredients, self._groups, self._dtype = ingredients, groups, dtype

    @property
    def gains(self) -> dict[str, torch.Tensor]:
        """Maps the names of norms to their gains."""
        return dict(zip(self._gain_names, self.gain_values, strict=True))

    def merged(self) -> dict[str, torch.Tensor]:
        """Returns the layer's tensors; gradients reach the merge weights and the gains."""
        given = self._ingredients
        tensors: dict[str, torch.Tensor] = {}
        for name, base in given.base.items():
            if name in self._gain_names:
                continue
            weights = self.weights[self._groups.of_tensor[name]]
            if name in given.zeros:
                tensors[name] = torch.zeros_like(base, dtype=self._dtype, device=weights.device)
                continue
            merged = merge(weights, base, [member[name] for member in given.members])
            if name in given.maps:
                merged = given.maps[name] @ merged
            tensors[name] = merged.to(self._dtype)
        for name, gain in self.gains.items():
            tensors[name] = gain.to(self._dtype)
        return tensors

    def forward(self, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        """Runs the layer; its merged weights and what it computes inside are made again for gradients."""

        def run(hidden: torch.Tensor) -> Any:
            return functional_call(self._layer, self.merged(), (hidden, *arguments), named)

        if not torch.is_grad_enabled():
            return run(hidden_states)
        return checkpoint(run, hidden_states, use_reentrant=False)


class _Merge(torch.autograd.Function):
    """Task arithmetic that keeps nothing but its inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        shares = torch.cat([1 - weights.sum(0, keepdim=True), weights])
        return (shares @ _stacked(tensors, weights)).view(tensors[0].shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        of_shares = _stacked(ctx.saved_tensors, gradient) @ gradient.flatten()
        return (of_shares[1:] - of_shares[0], *[None] * len(of_shares))


def _stacked(tensors: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Returns stored tensors as rows [tensors, numbers] in float32, on the device of another."""
    rows = [tensor.to(like.device, non_blocking=True).flatten() for tensor in tensors]
    if any(row.dtype != rows[0].dtype for row in rows):
        rows = [row.float() for row in rows]
    return torch.stack(rows).float()


def merge(weights: torch.Tensor, base: torch.Tensor, members: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns W_base + Σ_k w_k (W_k - W_base) in float32; gradients reach the weights [members].

    The stored tensors may be in the host's memory.
    """
    if not members:
        return base.to(weights.device, torch.float32, non_blocking=True)
    merged: torch.Tensor = _Merge.apply(weights, base, *members)  # type: ignore[no-untyped-call]
    return merged
