"""The section `target` of a search config: the size that the pruned model is to have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from gptailor_merge.objectives.config_types import Positive, Section


def _read_size(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if len(value) != 2 or not all(type(size) in (int, float) for size in value) or value[0] >= value[1]:
            raise ValueError(f"expected one size or a range [smallest, largest], found {list(value)!r}")
        return tuple(value)
    return value


def _form_of_size(value: Any) -> str:
    """Returns a union's branch; brackets mark what is in no document, see documents.explain."""
    return "[range]" if isinstance(value, tuple) else "[one]"


Share = Annotated[float, Field(gt=0, lt=1)]

Layers = Annotated[
    Annotated[Positive, Tag("[one]")] | Annotated[tuple[Positive, Positive], Tag("[range]")],
    Discriminator(_form_of_size),
    BeforeValidator(_read_size),
]
"""A number of layers that stay, or a range of them."""

Natural = Annotated[int, Field(ge=0)]

Removed = Annotated[
    Annotated[Natural, Tag("[one]")] | Annotated[tuple[Natural, Natural], Tag("[range]")],
    Discriminator(_form_of_size),
    BeforeValidator(_read_size),
]
"""A number of layers that go, or a range of them; 0 looks for the best merge at full size."""

Shares = Annotated[
    Annotated[Share, Tag("[one]")] | Annotated[tuple[Share, Share], Tag("[range]")],
    Discriminator(_form_of_size),
    BeforeValidator(_read_size),
]
"""A share of the base model's parameters, or a range of them."""


class Target(Section):
    """The size of the pruned model, given in one of three ways; a range asks for the front of its sizes.

    Attributes:
        layers: how many the pruned model has.
        remove: how many the base model loses; 0 searches for the best merge at full size.
        parameters: share that the pruned model keeps.
    """

    layers: Layers | None = None
    remove: Removed | None = None
    parameters: Shares | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> Target:
        names = [name for name, value in self if value is not None]
        if len(names) != 1:
            raise ValueError(f"expected one of layers, remove, parameters, found {names or 'none'}")
        return self

    @property
    def is_range(self) -> bool:
        """True where several sizes are asked for."""
        return any(isinstance(value, tuple) for _, value in self)
