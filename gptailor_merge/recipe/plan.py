"""The plan: a recipe with nothing left to resolve, as frozen values that know nothing of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

SELECT = "passthrough"
"""The mergekit method that a selected layer goes through."""


Scalar = bool | int | float | str


Filtered = tuple[tuple[str | None, Scalar], ...]
"""Values by tensor name: the first whose filter is None, "*" or part of the name is taken."""


Settings = tuple[tuple[str, Scalar | Filtered], ...]


@dataclass(frozen=True)
class Operation:
    """How the tensors of a slot's sources become one: a mergekit method, fully parametrised.

    Attributes:
        method: name of a registered mergekit method; "passthrough" selects.
        shared: settings of the method as a whole.
        inputs: settings of each source, in the order of the sources.
        base: position of the source that is the method's base, if there is one.
    """

    method: str
    inputs: tuple[Settings, ...]
    shared: Settings = ()
    base: int | None = None

    def to_json(self) -> str:
        """A canonical text: equal operations have equal texts."""
        return json.dumps(
            [self.method, self.base, _sorted(self.shared), [_sorted(s) for s in self.inputs]],
            separators=(",", ":"),
        )

    @staticmethod
    @lru_cache(maxsize=4096)
    def from_json(text: str) -> Operation:
        """The inverse of `to_json`."""
        method, base, shared, inputs = json.loads(text)
        return Operation(method, tuple(_settings(i) for i in inputs), _settings(shared), base)


def _sorted(settings: Settings) -> list[tuple[str, Scalar | Filtered]]:
    return sorted(settings, key=lambda item: item[0])


def _settings(pairs: Sequence[Sequence[Any]]) -> Settings:
    return tuple(
        (name, tuple((f, v) for f, v in value) if isinstance(value, list) else value) for name, value in pairs
    )


ATTENTION, MLP = "attention", "mlp"


PARTS = (ATTENTION, MLP)


@dataclass(frozen=True)
class Edit:
    """One edit of the linear map that a part of a layer ends with.

    Attributes:
        part: "attention" or "mlp".
        digest: of the map that it is multiplied with; None makes it zero.
        file: that holds the map.
    """

    part: str
    digest: str | None = None
    file: str = field(default="", compare=False)


@dataclass(frozen=True)
class Slot:
    """One layer of the tailored model: the layers it is made from and how.

    Attributes:
        layers: (model, layer index) of each source.
        operation: what makes one layer of them.
        edits: what is done to single tensors of that layer then.
    """

    layers: tuple[tuple[str, int], ...]
    operation: Operation
    edits: tuple[Edit, ...] = ()

    @property
    def is_as_stored(self) -> bool:
        """Whether it is a member's own layer, with no more than a scale."""
        return self.operation.method == SELECT and not self.edits

    def to_json(self) -> list[Any]:
        """What the digest is made of."""
        edits = [[edit.part, edit.digest] for edit in self.edits]
        return [self.layers, self.operation.to_json(), *([edits] if edits else [])]


@dataclass(frozen=True)
class Plan:
    """A recipe with nothing left to resolve: what lowering and composing both execute.

    Attributes:
        slots: the layers of the tailored model, first to last.
        embeddings: (models, operation) of the token embeddings.
        head: (models, operation) of the final norm and lm_head.
        tokenizer: the model whose tokenizer, special tokens and generation config the model gets.
    """

    base_model: str
    slots: tuple[Slot, ...]
    embeddings: tuple[tuple[str, ...], Operation]
    head: tuple[tuple[str, ...], Operation]
    tokenizer: str
    dtype: str | None
    out_dtype: str | None

    @property
    def kept(self) -> tuple[int, ...]:
        """For each slot the layer whose kind it is of: that of its first source."""
        return tuple(slot.layers[0][1] for slot in self.slots)

    @property
    def repaired(self) -> tuple[int, ...]:
        """The slots whose MLP is multiplied with a map."""
        edited = (any(edit.digest is not None for edit in slot.edits) for slot in self.slots)
        return tuple(position for position, one in enumerate(edited) if one)

    @property
    def digest(self) -> str:
        """16 hex digits; equal for recipes that make the same model, however they are written."""
        parts = [
            self.base_model,
            [slot.to_json() for slot in self.slots],
            [[models, operation.to_json()] for models, operation in (self.embeddings, self.head)],
            self.dtype,
            self.out_dtype,
        ]
        if self.tokenizer != self.base_model:
            parts.append(self.tokenizer)
        text = json.dumps(parts, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
