"""Every layer of a family, loaded once; merged layers, computed by mergekit and kept by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from gptailor_merge.mergekit_plugin import SELECT, Operation, apply
from gptailor_merge.recipe.family import Family, Member
from gptailor_merge.recipe.operations import Slot

DEFAULT_MERGED_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Precision:
    """The dtypes that a tensor passes through; None keeps what comes in.

    Attributes:
        merge: merge arithmetic, a recipe's `dtype`.
        out: what the written model has, a recipe's `out_dtype`.
        compute: what the forward pass runs in; widening from `out` changes no value.
    """

    merge: torch.dtype | None = None
    out: torch.dtype | None = None
    compute: torch.dtype | None = None

    @classmethod
    def of(cls, dtype: str | None, out_dtype: str | None, compute: torch.dtype | None = None) -> Precision:
        """From the names that recipes use."""
        merge, out = (None if name is None else getattr(torch, name) for name in (dtype, out_dtype))
        return cls(merge, out, compute)


@dataclass(eq=False)
class Layer:
    """The tensors of one slot by their names inside the layer, and modules made around them.

    `modules` belongs to compose.py: one module per position, since attention modules carry their
    position (`layer_idx`) for the KV cache.
    """

    tensors: Mapping[str, torch.Tensor]
    modules: dict[int, nn.Module] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Bank:
    """Gives the tensors of slots, embeddings and heads; the same object for the same content.

    A selected layer shares the family's storage where the precision changes nothing. Merged
    layers are dropped, the least recently used first, when they exceed `merged_bytes`.
    """

    def __init__(
        self,
        family: Family,
        precision: Precision,
        *,
        device: torch.device | str = "cpu",
        merged_bytes: int = DEFAULT_MERGED_BYTES,
    ) -> None:
        self.family = family
        self.precision = precision
        self.device = torch.device(device)
        self._merged_budget = merged_bytes
        self._merged_bytes = 0
        self._loaded: dict[tuple[str, str], torch.Tensor] = {}
        self._selected: dict[Slot, Layer] = {}
        self._merged: OrderedDict[Slot, Layer] = OrderedDict()
        self._outer: dict[tuple[tuple[str, ...], Operation, str], torch.Tensor] = {}

    def preload(self) -> None:
        """Load every tensor of the family, so that no candidate has to wait for the disk."""
        for member in self.family.members:
            self._load(member, list(member.headers))

    def layer(self, slot: Slot) -> Layer:
        """The layer that a slot holds."""
        if slot.operation.method == SELECT:
            if slot not in self._selected:
                self._selected[slot] = self._build(slot)
            return self._selected[slot]
        if slot in self._merged:
            self._merged.move_to_end(slot)
            return self._merged[slot]
        layer = self._build(slot)
        self._merged[slot] = layer
        self._merged_bytes += layer.nbytes
        while self._merged_bytes > self._merged_budget and len(self._merged) > 1:
            _, dropped = self._merged.popitem(last=False)
            self._merged_bytes -= dropped.nbytes
        return layer

    def outer(self, models: tuple[str, ...], operation: Operation, name: str) -> torch.Tensor:
        """A tensor outside the layers: of the embeddings, the final norm or the head."""
        key = (models, operation, name)
        if key not in self._outer:
            members = [self.family.by_model(model) for model in models]
            self._outer[key] = self._combine(operation, [(m, name) for m in members], name)
        return self._outer[key]

    def _build(self, slot: Slot) -> Layer:
        members = [(self.family.by_model(model), index) for model, index in slot.layers]
        names = [member.layer_tensors(index) for member, index in members]
        tensors = {}
        for inner in names[0]:
            sources = [(member, full[inner]) for (member, _), full in zip(members, names, strict=True)]
            tensors[inner] = self._combine(slot.operation, sources, sources[0][1])
        return Layer(tensors)

    def _combine(
        self, operation: Operation, sources: Sequence[tuple[Member, str]], name: str
    ) -> torch.Tensor:
        """Exactly what mergekit's graph does: load, cast to dtype, merge, cast to out_dtype."""
        merge, out, compute = self.precision.merge, self.precision.out, self.precision.compute
        tensors = [_cast(self._load(member, [full])[0], merge) for member, full in sources]
        return _cast(_cast(apply(operation, tensors, name), out), compute)

    def _load(self, member: Member, names: Sequence[str]) -> list[torch.Tensor]:
        missing = [name for name in names if (member.model, name) not in self._loaded]
        with ExitStack() as stack:
            open_file = _opener(stack, member.directory, self.device)
            for name in missing:
                file = member.headers[name].file
                tensors: Any = open_file(file)
                self._loaded[member.model, name] = tensors.get_tensor(name)
        return [self._loaded[member.model, name] for name in names]


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _opener(stack: ExitStack, directory: Path, device: torch.device) -> Callable[[str], safe_open]:
    opened: dict[str, safe_open] = {}

    def open_file(name: str) -> safe_open:
        if name not in opened:
            opened[name] = stack.enter_context(safe_open(directory / name, "pt", device=str(device)))
        return opened[name]

    return open_file
