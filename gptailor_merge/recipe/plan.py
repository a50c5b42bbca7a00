"""The plan: a recipe with nothing left to resolve, as frozen values that know nothing of weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from gptailor_merge.digests import digest_of_bytes

SELECT = "passthrough"
"""The merge method that a selected layer goes through."""


Scalar = bool | int | float | str


Filtered = tuple[tuple[str | None, Scalar], ...]
"""(filter, value) pairs: a tensor takes the first whose filter is None, "*" or a part of its name."""


Settings = tuple[tuple[str, Scalar | Filtered], ...]
"""(name, value) pairs: the parameters of a method, or of one of its sources."""


@dataclass(frozen=True)
class Operation:
    """The merge method that makes one tensor of the sources' tensors, with all its parameters.

    Attributes:
        method: name of a registered mergekit method; "passthrough" selects.
        inputs: settings of each source, in the order of the sources.
        shared: settings of the method as a whole.
        base: position of the source that is the method's base, or None.
    """

    method: str
    inputs: tuple[Settings, ...]
    shared: Settings = ()
    base: int | None = None

    def to_json(self) -> str:
        """Returns a canonical text: equal operations have equal texts.

        >>> Operation("slerp", ((), ()), (("t", 0.5),), base=0).to_json()
        '["slerp",0,[["t",0.5]],[[],[]]]'
        """
        return json.dumps(
            [self.method, self.base, _sorted(self.shared), [_sorted(settings) for settings in self.inputs]],
            separators=(",", ":"),
        )

    @staticmethod
    @lru_cache(maxsize=4096)
    def from_json(text: str) -> Operation:
        """Reads what `to_json` returns."""
        method, base, shared, inputs = json.loads(text)
        return Operation(method, tuple(map(_settings, inputs)), _settings(shared), base)


def _sorted(settings: Settings) -> list[tuple[str, Scalar | Filtered]]:
    return sorted(settings, key=lambda pair: pair[0])


def _settings(pairs: Sequence[Sequence[Any]]) -> Settings:
    return tuple(
        (name, tuple((f, v) for f, v in value) if isinstance(value, list) else value) for name, value in pairs
    )


ATTENTION, MLP = "attention", "mlp"


PARTS = (ATTENTION, MLP)


NORMS = "norms"
"""The part of an edit that replaces the gains of norms."""


LORA = "lora"
"""The part of an edit that adds a LoRA adapter to linear maps."""


@dataclass(frozen=True)
class Edit:
    """An edit of the linear map that a part of a layer ends with, of the gains of norms, or by an adapter.

    Attributes:
        part: "attention", "mlp", "norms" or "lora".
        digest: digest of the file; None, which only attention and MLP allow, makes the linear map zero.
        file: the file that holds the repair map that is multiplied with the linear map, or the gains that
            take the place of those of the norms; the directory of an adapter.
        position: the slot that gets its share of an adapter; None for the other edits, and for an adapter
            as a whole.
    """

    part: str
    digest: str | None = None
    file: str = field(default="", compare=False)
    position: int | None = None

    @property
    def is_repair(self) -> bool:
        """True if the edit multiplies a part with a repair map."""
        return self.digest is not None and self.part in PARTS


@dataclass(frozen=True)
class Slot:
    """One layer of the tailored model.

    Attributes:
        layers: (model, layer index) of each source.
        operation: the operation that makes one layer of them.
        edits: the edits that are made to that layer afterwards.
    """

    layers: tuple[tuple[str, int], ...]
    operation: Operation
    edits: tuple[Edit, ...] = ()

    @property
    def is_as_stored(self) -> bool:
        """True if the layer is a member's own, at most scaled."""
        return self.operation.method == SELECT and not self.edits

    def to_json(self) -> list[Any]:
        """Returns the slot's part of the plan's digest."""
        edits = [[edit.part, edit.digest] for edit in self.edits]
        return [self.layers, self.operation.to_json(), *([edits] if edits else [])]


class Component(NamedTuple):
    """Tensors outside the layers: the models that they come from, and the operation that merges them."""

    models: tuple[str, ...]
    operation: Operation


@dataclass(frozen=True)
class Plan:
    """A recipe with nothing left to resolve; lowering and composing both execute it.

    Attributes:
        slots: the layers of the tailored model, first to last.
        embeddings: the token embeddings.
        head: the final norm and lm_head.
        tokenizer: the model that gives tokenizer, special tokens and generation config.
        gains: the edit of the norms outside the layers; None leaves them as they are.
        rest: what is no part of the language model, e.g. a vision tower; None means the base's.
        adapter: the LoRA adapter that is added to the layers after all other edits; None adds nothing.
    """

    base_model: str
    slots: tuple[Slot, ...]
    embeddings: Component
    head: Component
    tokenizer: str
    dtype: str | None
    out_dtype: str | None
    gains: Edit | None = None
    rest: Component | None = None
    adapter: Edit | None = None

    @property
    def adapted_slots(self) -> tuple[Slot, ...]:
        """The slots, each of which is edited last by its share of the adapter; this is what is composed."""
        if self.adapter is None:
            return self.slots
        return tuple(
            replace(slot, edits=(*slot.edits, replace(self.adapter, position=position)))
            for position, slot in enumerate(self.slots)
        )

    @property
    def outer_edits(self) -> tuple[Edit, ...]:
        """The edits of the tensors outside the layers."""
        return () if self.gains is None else (self.gains,)

    @property
    def rest_component(self) -> Component:
        """The component that `rest` stands for."""
        return self.rest or Component((self.base_model,), Operation(SELECT, ((),)))

    def with_edits(self, change: Callable[[Edit], Edit]) -> Plan:
        """Returns the plan with each of its edits changed, gains outside the layers and adapter included."""
        slots = tuple(replace(slot, edits=tuple(map(change, slot.edits))) for slot in self.slots)
        gains, adapter = (None if edit is None else change(edit) for edit in (self.gains, self.adapter))
        return replace(self, slots=slots, gains=gains, adapter=adapter)

    @property
    def kept(self) -> tuple[int, ...]:
        """The layer index of each slot's first source; the slot's layer is of that layer's kind."""
        return tuple(slot.layers[0][1] for slot in self.slots)

    @property
    def repaired(self) -> tuple[int, ...]:
        """The positions of the slots whose MLP is multiplied with a repair map."""
        has_map = (any(edit.is_repair for edit in slot.edits) for slot in self.slots)
        return tuple(position for position, repaired in enumerate(has_map) if repaired)

    @property
    def fitted_norms(self) -> tuple[int, ...]:
        """The positions of the slots whose norms have the gains of a file."""
        has_gains = (any(edit.part == NORMS for edit in slot.edits) for slot in self.slots)
        return tuple(position for position, present in enumerate(has_gains) if present)

    @property
    def digest(self) -> str:
        """16 hex digits; equal for recipes that make the same model, however they are written."""
        content: list[Any] = [
            self.base_model,
            [slot.to_json() for slot in self.slots],
            [[models, operation.to_json()] for models, operation in (self.embeddings, self.head)],
            self.dtype,
            self.out_dtype,
        ]
        if self.tokenizer != self.base_model:
            content.append(self.tokenizer)
        if self.gains is not None:
            content.append([self.gains.part, self.gains.digest])
        if self.rest is not None:
            content.append({"rest": [self.rest.models, self.rest.operation.to_json()]})
        if self.adapter is not None:
            content.append({"adapter": self.adapter.digest})
        return digest_of_bytes(json.dumps(content, separators=(",", ":")).encode())
