"""Frozen values of a recipe's YAML fields: parameters, and the origin of embeddings and head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from gptailor_merge.documents import Frozen

ModelName = Annotated[str, Field(min_length=1, max_length=1024)]


def _checked_text(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"expected a text, in quotes, found {value!r}")
    return value


TextField = Annotated[str | None, BeforeValidator(_checked_text)]


class Conditional(Frozen):
    """A setting for the tensors whose name contains `filter` (mergekit's conditional parameter)."""

    value: Any
    filter: str | None = None


Parameters = tuple[tuple[str, Any], ...]
"""(name, value) pairs; lists are tuples, conditional settings are `Conditional`."""


MOST_SETTINGS = 1024
"""Entries that a list of settings may have; a list over layers has one for each."""


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "value" not in value or not set(value) <= {"value", "filter"}:
            raise ValueError(f"expected {{value: …, filter: …}}, found the keys {sorted(map(str, value))}")
        if not isinstance(value.get("filter"), (str, type(None))):
            raise ValueError(f"expected a text as filter, found {value['filter']!r}")
        return Conditional(value=_freeze(value["value"]), filter=value.get("filter"))
    if isinstance(value, (list, tuple)):
        if len(value) > MOST_SETTINGS:
            raise ValueError(f"expected at most {MOST_SETTINGS:,} entries, found {len(value):,}")
        return tuple(_freeze(item) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    if isinstance(value, (bool, int, float, str, Conditional)):
        return value
    raise ValueError(f"expected a number, a text, true, false or a list of these, found {value!r}")


def _thaw(value: Any) -> Any:
    if isinstance(value, Conditional):
        condition = {} if value.filter is None else {"filter": value.filter}
        return {**condition, "value": _thaw(value.value)}
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    return value


def _freeze_parameters(document: Any) -> Any:
    if isinstance(document, tuple):
        return document
    if document is not None and not isinstance(document, Mapping):
        raise ValueError(f"expected a mapping, found {document!r}")
    frozen = []
    for name, setting in (document or {}).items():
        try:
            frozen.append((str(name), _freeze(setting)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return tuple(frozen)


def _thaw_parameters(parameters: Parameters) -> dict[str, Any]:
    return {name: _thaw(setting) for name, setting in parameters}


SETTING: dict[str, Any] = {
    "anyOf": [
        {"type": ["number", "string", "boolean"]},
        {"type": "array", "maxItems": MOST_SETTINGS},
        {
            "type": "object",
            "required": ["value"],
            "properties": {"value": {}, "filter": {"type": ["string", "null"]}},
            "additionalProperties": False,
        },
    ]
}
"""The JSON Schema of the setting of a parameter."""


SETTINGS: dict[str, Any] = {"type": ["object", "null"], "additionalProperties": SETTING}
"""The JSON Schema of parameters."""


ParametersField = Annotated[
    Parameters,
    BeforeValidator(_freeze_parameters),
    PlainSerializer(_thaw_parameters),
    WithJsonSchema(SETTINGS),
]


def as_tuple(value: Any) -> Any:
    """Turns a YAML list into a tuple; raises a ValueError for anything else."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list, found {value!r}")
    return tuple(value)


class Origin(Frozen):
    """The origin of the embeddings, or of the final norm and head: one member, or a merge of members.

    Attributes:
        weights: (member, weight) pairs; a member is a model of the recipe or "base", and its weight is
            None if the method takes no weights.
        method: a mergekit method; None for a single member.
        base_model: the method's base if it is not the recipe's.
        parameters: parameters of the method as a whole.
        settings: the parameters of each member, where they are more than weights; else empty.
    """

    weights: tuple[tuple[str, float | None], ...]
    method: str | None = None
    base_model: ModelName | None = None
    parameters: ParametersField = ()
    settings: tuple[ParametersField, ...] = ()

    def settings_of(self, position: int) -> Parameters:
        """Returns the parameters of one member."""
        if self.settings:
            return self.settings[position]
        weight = self.weights[position][1]
        return () if weight is None else (("weight", weight),)


def _read_origin(document: Any) -> Any:
    if isinstance(document, str):
        return Origin(weights=((document, 1.0),))
    if not isinstance(document, Mapping):
        if isinstance(document, Origin):
            return document
        raise ValueError(f"expected the name of a member or a mapping, found {document!r}")
    allowed = {"method", "weights", "members", "base_model", "parameters"}
    named_once = len({"weights", "members"} & set(document)) == 1
    if "method" not in document or not named_once or set(document) - allowed:
        raise ValueError(
            "expected the name of a member, {method: …, weights: {member: number, …}} or {method: …, "
            f"members: [member, …], parameters: {{…}}}}, found the keys {sorted(map(str, document))}"
        )
    rest = {key: document[key] for key in ("method", "base_model", "parameters") if key in document}
    settings = _read_settings(document)
    return {"weights": _read_weights(document), **rest, **({"settings": settings} if any(settings) else {})}


def _read_settings(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the parameters of each entry of `members`; an entry is a name, or a mapping that has some."""
    members = document.get("members", ())
    return tuple(m.get("parameters") if isinstance(m, Mapping) else None for m in as_tuple(members))


def _read_weights(document: Mapping[str, Any]) -> tuple[tuple[str, float | None], ...]:
    if "members" in document:
        members = document["members"]
        if not isinstance(members, (list, tuple)):
            raise ValueError(f"members: expected a list, found {members!r}")
        return tuple((_name(member), None) for member in members)
    weights = document["weights"]
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights: expected a mapping, found {weights!r}")
    for member, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"weights.{member}: expected a finite number, found {weight!r}")
    return tuple((str(member), float(weight)) for member, weight in weights.items())


def _name(member: Any) -> str:
    if not isinstance(member, Mapping):
        return str(member)
    if "model" not in member or set(member) - {"model", "parameters"}:
        raise ValueError(
            f"members: expected a name or {{model: …, parameters: {{…}}}}, found {dict(member)!r}"
        )
    return str(member["model"])


def _write_origin(origin: Origin) -> Any:
    if origin.method is None:
        return origin.weights[0][0]
    weights = dict(origin.weights)
    document: dict[str, Any] = {"method": origin.method}
    members = [
        {"model": name, "parameters": _thaw_parameters(settings)} if settings else name
        for (name, _), settings in zip(origin.weights, origin.settings or ((),) * len(weights), strict=True)
    ]
    document |= {"members": members} if None in weights.values() else {"weights": weights}
    if origin.base_model is not None:
        document["base_model"] = origin.base_model
    if origin.parameters:
        document["parameters"] = _thaw_parameters(origin.parameters)
    return document


_MEMBER: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["model"],
            "properties": {"model": {"type": "string"}, "parameters": SETTINGS},
            "additionalProperties": False,
        },
    ]
}


_ORIGIN: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["method"],
            "properties": {
                "method": {"type": "string"},
                "base_model": {"type": "string"},
                "weights": {"type": "object", "additionalProperties": {"type": "number"}},
                "members": {"type": "array", "items": _MEMBER},
                "parameters": SETTINGS,
            },
            "additionalProperties": False,
            "oneOf": [{"required": ["weights"]}, {"required": ["members"]}],
        },
    ]
}
"""The JSON Schema of an origin."""


OriginField = Annotated[
    Origin, BeforeValidator(_read_origin), PlainSerializer(_write_origin), WithJsonSchema(_ORIGIN)
]
