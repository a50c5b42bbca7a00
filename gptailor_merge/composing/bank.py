"""Loads every layer of a family once, and caches the layers that merging makes of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from gptailor_merge.composing.arrival import Arrival
from gptailor_merge.composing.editing import Placed, edited
from gptailor_merge.composing.output_projections import placed
from gptailor_merge.methods.arithmetic import apply, name_in_layer
from gptailor_merge.methods.conversion import convert
from gptailor_merge.models.devices import FREE_SHARE
from gptailor_merge.models.family import Family
from gptailor_merge.models.member import Member
from gptailor_merge.recipe.plan import SELECT, Operation, Slot

DEFAULT_CACHE_BYTES = 2 * 1024**3
"""Room for computed layers if no other size is given."""


BUFFERS = 2
"""Layers of a family on the host that are on their way at once, or have come and are not asked for yet."""


@dataclass(frozen=True)
class Precision:
    """The dtypes that a tensor passes through; None changes nothing.

    Attributes:
        merge: the dtype of merge arithmetic, a recipe's `dtype`.
        out: the dtype of the written model, a recipe's `out_dtype`.
        compute: the dtype of the forward pass; widening from `out` changes no value.
    """

    merge: torch.dtype | None = None
    out: torch.dtype | None = None
    compute: torch.dtype | None = None

    @classmethod
    def of(cls, dtype: str | None, out_dtype: str | None, compute: torch.dtype | None = None) -> Precision:
        """Returns the precision with dtypes by the names that recipes use."""
        merge, out = (None if name is None else getattr(torch, name) for name in (dtype, out_dtype))
        return cls(merge, out, compute)


@dataclass(eq=False)
class Layer:
    """The tensors of one slot by their names inside the layer, and modules that hold them.

    compose.py fills `modules`: one module per position, since attention modules carry their position
    (`layer_idx`) for the KV cache.
    """

    tensors: Mapping[str, torch.Tensor]
    modules: dict[int, nn.Module] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of the layer's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass
class _Cached:
    """A cached layer.

    Attributes:
        cost: the seconds that it took to make.
        rank: the layer of the lowest rank is dropped first.
    """

    layer: Layer
    cost: float
    rank: float


class Bank:
    """Returns the tensors of slots, embeddings and heads; equal slots get the same object.

    A selected layer shares the family's storage if the precision changes nothing. Layers that were
    merged, or moved to the device from the host, are cached up to `cache_bytes`. When room is needed,
    those layers are dropped first that are cheap to make again and have not been used for a while
    (GreedyDual: N. Young, Algorithmica 11, 1994).

    Args:
        on_host: keeps the family in host memory (pinned, for a GPU) and moves layers to the device when
            they are asked for, or beside what computes when they are fetched.
    """

    def __init__(
        self,
        family: Family,
        precision: Precision,
        *,
        device: torch.device | str = "cpu",
        on_host: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.family = family
        self.precision = precision
        self.device = torch.device(device)
        self.on_host = on_host
        self._cache_bytes = cache_bytes
        self._used_bytes = 0
        self._rank = 0.0
        self._loaded: dict[tuple[str, str], torch.Tensor] = {}
        self._files: dict[tuple[Path, torch.device], Any] = {}
        self._shared: dict[Slot, Layer] = {}
        self._made: dict[Hashable, _Cached] = {}
        self._outer: dict[tuple[tuple[str, ...], Operation, str], torch.Tensor] = {}
        self._coming: dict[Hashable, Arrival[Layer]] = {}
        self._copies: torch.cuda.Stream | None = None
        if on_host and self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def preload(self) -> None:
        """Loads every tensor of the family, so that no candidate waits for the disk."""
        for member in self.family.members:
            architecture = member.architecture
            for name in (*architecture.before, *architecture.after):  # the rest is that of one member
                self._load(member, name, None)
            for index, layer in enumerate(architecture.layers):
                for inner in layer:
                    self._load(member, f"{architecture.prefix}{index}.{inner}", index)

    def with_empty_cache(self, cache_bytes: int) -> Bank:
        """Returns a bank of the same loaded tensors that has computed no layer yet."""
        bank = Bank(
            self.family, self.precision, device=self.device, on_host=self.on_host, cache_bytes=cache_bytes
        )
        bank._loaded, bank._files = self._loaded, self._files
        return bank

    def stored(self, model: str, index: int) -> dict[str, torch.Tensor]:
        """Returns the tensors of a member's layer as they are stored, by their names inside the layer.

        They are in the host's memory where the family is.
        """
        member = self.family.by_model(model)
        architecture = member.architecture
        return {
            inner: self._load(member, f"{architecture.prefix}{index}.{inner}", index)
            for inner in architecture.layers[index]
        }

    def stored_outer(self, model: str, name: str) -> torch.Tensor:
        """Returns a member's tensor outside the layers as it is stored; see `stored`."""
        return self._load(self.family.by_model(model), name, None)

    def layer(self, slot: Slot) -> Layer:
        """Returns the layer that a slot holds."""
        if slot.is_as_stored and not self.on_host:
            if slot not in self._shared:
                self._shared[slot] = self._build(slot)
            return self._shared[slot]
        return self._cached_layer(slot, lambda: self._build(slot))

    def fetch(self, slot: Slot) -> None:
        """Begins to bring a slot's layer to the device, if it comes from the host; `layer` waits for it."""
        if not self.on_host or slot in self._made or slot in self._coming:
            return
        while len(self._coming) >= BUFFERS:
            del self._coming[next(iter(self._coming))]
        self._coming[slot] = Arrival(lambda: self._build(slot), self.device, self._copies)

    def _cached_layer(self, key: Hashable, make: Callable[[], Layer]) -> Layer:
        """Returns the cached layer of a key; makes and caches it if there is none."""
        cached = self._made.get(key)
        if cached is None:
            arrival = self._coming.pop(key, None) or Arrival(make, self.device, None)
            layer, seconds = arrival.wait()
            cached = self._made[key] = _Cached(layer, seconds, 0.0)
            self._used_bytes += layer.nbytes
        cached.rank = self._rank + cached.cost / cached.layer.nbytes
        while self._used_bytes > self._cache_bytes and len(self._made) > 1:
            self._drop_lowest(except_for=key)
        return cached.layer

    def _drop_lowest(self, except_for: Hashable) -> None:
        keys = (key for key in self._made if key != except_for)
        dropped = self._made.pop(min(keys, key=lambda key: self._made[key].rank))
        self._rank = dropped.rank
        self._used_bytes -= dropped.layer.nbytes

    def outer(
        self, models: tuple[str, ...], operation: Operation, name: str, edits: Sequence[Placed] = ()
    ) -> torch.Tensor:
        """Returns a tensor outside the layers, which belongs to embeddings, final norm or head."""
        key = (models, operation, name)
        edits = tuple(placed_edit for placed_edit in edits if name in placed_edit.names)

        def make() -> Layer:
            sources = [(self.family.by_model(model), name, None) for model in models]
            return Layer({name: self._combine(operation, sources, name, edits)})

        if operation.method != SELECT or edits:
            return self._cached_layer((*key, edits), make).tensors[name]
        if key not in self._outer:
            self._outer[key] = make().tensors[name]
        return self._outer[key]

    def _build(self, slot: Slot) -> Layer:
        members = [(self.family.by_model(model), index) for model, index in slot.layers]
        architecture = self.family.base.architecture
        edits = placed(slot.edits, self.family.base.config, members[0][1])
        tensors = {}
        for inner in architecture.layers[members[0][1]]:
            sources = [(member, f"{architecture.prefix}{index}.{inner}", index) for member, index in members]
            tensors[inner] = self._combine(slot.operation, sources, sources[0][1], edits)
        return Layer(tensors)

    def _combine(
        self,
        operation: Operation,
        sources: Sequence[tuple[Member, str, int | None]],
        name: str,
        edits: Sequence[Placed] = (),
    ) -> torch.Tensor:
        """Does what mergekit's graph does: load, cast to dtype, merge, edit, cast to out_dtype."""
        merge, out, compute = self.precision.merge, self.precision.out, self.precision.compute
        loaded = [self._load(*source) for source in sources]
        is_plain = operation.method == SELECT and not any(operation.inputs) and not edits
        if is_plain and out is not None and _widens(loaded[0].dtype, merge):
            merge = None  # what is widened and narrowed again is the same, and would be a copy
        tensors = [_cast(tensor.to(self.device, non_blocking=True), merge) for tensor in loaded]
        # Filters and random seeds go by the names that are written; edits by those of the model.
        merged = apply(operation, tensors, self.family.base.written.of(name))
        result = edited(edits, merged, name_in_layer(name))
        return _cast(_cast(result, out), compute)

    def _load(self, member: Member, name: str, layer: int | None) -> torch.Tensor:
        """Returns a tensor as the model has it, converted if the checkpoint lays it out differently."""
        key = (member.model, name)
        if key not in self._loaded:
            device = torch.device("cpu") if self.on_host else self.device
            sources = {
                stored: partial(self._read, member.files[stored], stored, device)
                for stored in member.sources(name, layer)
            }
            if len(sources) == 1:
                tensor = next(iter(sources.values()))()
            else:
                converted = convert(str(member.config["model_type"]), sources, name)
                assert converted is not None  # Family.load has checked this
                tensor = converted.to(device)
            is_pinned = self.on_host and self.device.type == "cuda"
            self._loaded[key] = tensor.pin_memory() if is_pinned else tensor
        return self._loaded[key]

    def _read(self, file: Path, name: str, device: torch.device) -> torch.Tensor:
        opened = self._files.get((file, device))
        if opened is None:
            opened = self._files[file, device] = safe_open(file, "pt", device=str(device))
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor


def family_bytes(family: Family, dtype: torch.dtype) -> int:
    """Returns the bytes that all members need in a dtype."""
    return len(family.members) * family.parameters(range(family.depth)) * dtype.itemsize


def belongs_on_host(family: Family, dtype: torch.dtype, device: torch.device) -> bool:
    """Tells whether the family would leave too little of a GPU's memory to work in."""
    if device.type != "cuda":
        return False
    return family_bytes(family, dtype) > FREE_SHARE * _free_bytes(device)


def cache_bytes(family: Family, dtype: torch.dtype, device: torch.device, *, on_host: bool) -> int:
    """Returns the room for cached layers: the family's size, but at most half of what it leaves of a GPU."""
    size = family_bytes(family, dtype)
    if device.type != "cuda":
        return size
    left = _free_bytes(device) - (0 if on_host else size)
    return max(0, min(size, left // 2))


def _free_bytes(device: torch.device) -> int:
    """Returns the free memory of a GPU, with what torch keeps of models that are gone."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _widens(dtype: torch.dtype, to: torch.dtype | None) -> bool:
    """Tells whether a dtype has a value for every one of another's."""
    return to is not None and torch.promote_types(dtype, to) == to
