"""Embeddings and head whose tensors are a merge with weights that gradients reach.

A model's vocabulary is large: of the embeddings only those rows are merged that texts have, and the head
is merged some rows at a time, again for the backward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from gptailor_merge.composing.bank import Bank
from gptailor_merge.composing.compose import set_module
from gptailor_merge.composing.prefixes import StandIn
from gptailor_merge.recipe.plan import Component
from gptailor_merge.tuning.groups import Sharing, groups_of
from gptailor_merge.tuning.layers import merge
from gptailor_merge.tuning.start import closest_weights
from gptailor_merge.tuning.written_weights import merge_operation

PIECE = 2**24
"""Numbers of the head that are merged at once, approximately."""


class TunableComponent(nn.Module):
    """The tensors of embeddings or head as a merge of all members whose vocabulary fits.

    Attributes:
        weights: merge weights [groups, members], float32.
    """

    def __init__(
        self,
        bank: Bank,
        models: Sequence[str],
        component: Component,
        names: Sequence[str],
        sharing: Sharing,
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            models: the base and the members that are merged.
            component: the component as a recipe has it, where the fit starts.
            names: the tensors that the component gives, as the model calls them.
            dtype: of the merged tensors.
        """
        super().__init__()
        written = bank.family.base.written
        self._models, self._dtype, self._tied = tuple(models), dtype, bank.family.tied
        self._tensors = {name: tuple(bank.stored_outer(model, name) for model in models) for name in names}
        # A recipe's filters go by the names that are written.
        self._names = {name: written.of(name) for name in names}
        self._groups = groups_of(self._names.values(), "tensor" if sharing == "tensor" else "layer")
        of_model = [
            {self._names[n]: tensors[i] for n, tensors in self._tensors.items()} for i in range(len(models))
        ]
        target = {self._names[n]: bank.outer(component.models, component.operation, n) for n in names}
        weights = closest_weights(target, of_model[0], of_model[1:], self._groups)
        self.weights = nn.Parameter(weights.to(bank.device))

    @property
    def component(self) -> Component:
        """The component with the merge weights as they are now."""
        return Component(self._models, merge_operation(self.weights, self._groups))

    def merged(self, name: str, rows: torch.Tensor | slice | None = None) -> torch.Tensor:
        """Returns a tensor, or some of its rows; gradients reach the merge weights."""
        tensors = self._tensors[name]
        if isinstance(rows, torch.Tensor):
            tensors = tuple(tensor.index_select(0, rows.to(tensor.device)) for tensor in tensors)
        elif rows is not None:
            tensors = tuple(tensor[rows] for tensor in tensors)
        weights = self.weights[self._groups.of_tensor[self._names[name]]]
        return merge(weights, tensors[0], tensors[1:]).to(self._dtype)

    def install(self, model: PreTrainedModel, *, free: Collection[str] = ()) -> None:
        """Lets a composed model take the tensors from here.

        Args:
            free: names of tensors that are fitted by themselves.
        """
        modules = {module: path for path, module in model.named_modules()}
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
        owners: dict[str, dict[str, str]] = {}
        for name in self._tensors:
            path, _, leaf = name.rpartition(".")
            if name not in free:
                owners.setdefault(path, {})[leaf] = name
        for path, names in owners.items():
            owner = model.get_submodule(path)
            kind = _Merged
            if owner is embeddings and isinstance(owner, nn.Embedding):
                kind = _MergedEmbedding
                if self._tied and isinstance(head, nn.Linear):
                    set_module(model, modules[head], _MergedHead(head, self, {"weight": names["weight"]}))
            elif owner is head and isinstance(owner, nn.Linear):
                kind = _MergedHead
            set_module(model, path, kind(owner, self, names))


class _Merged(StandIn):
    """Runs a module with merged tensors.

    Args:
        names: name inside the module -> name in the model.
    """

    def __init__(self, module: nn.Module, component: TunableComponent, names: dict[str, str]) -> None:
        super().__init__(module)
        self._component, self._names = [component], names  # a list, so that it is no part of the model

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return functional_call(self._layer, self._tensors(), arguments, named)

    def _tensors(self, rows: torch.Tensor | slice | None = None) -> dict[str, torch.Tensor]:
        return {leaf: self._component[0].merged(name, rows) for leaf, name in self._names.items()}


class _MergedEmbedding(_Merged):
    """Looks tokens up in rows that are merged for them."""

    def __init__(self, module: nn.Module, component: TunableComponent, names: dict[str, str]) -> None:
        super().__init__(module, component, names)
        cast(nn.Embedding, self._layer).padding_idx = None  # it is a row of the whole matrix

    def forward(self, ids: torch.Tensor) -> Any:
        rows, places = torch.unique(ids, return_inverse=True)
        return functional_call(self._layer, self._tensors(rows), (places,))


class _MergedHead(_Merged):
    """Predicts some tokens of the vocabulary at a time."""

    def forward(self, hidden: torch.Tensor) -> Any:
        head = cast(nn.Linear, self._layer)
        size = max(1, PIECE // head.in_features)

        def run(hidden: torch.Tensor, start: int) -> Any:
            return functional_call(head, self._tensors(slice(start, start + size)), (hidden,))

        starts = range(0, head.out_features, size)
        if not torch.is_grad_enabled():
            return torch.cat([run(hidden, start) for start in starts], -1)
        pieces = [checkpoint(run, hidden, start, use_reentrant=False) for start in starts]
        return torch.cat(pieces, -1)
