"""The recipe: a frozen value, losslessly read from and written to mergekit YAML.

Only the shape is checked here (keys, types). What the keys mean is in operations.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError

from gptailor_merge.documents import Frozen, explain, read_yaml, write_yaml
from gptailor_merge.errors import RecipeError

TAILOR = "tailor"


WITHOUT, REPAIR, REPAIR_DIGEST = "without", "repair", "repair_digest"
"""Keys that edit what was selected or merged, see edits.py."""


OWN = ("op", "method", WITHOUT, REPAIR, REPAIR_DIGEST)
"""Keys of a slice's parameters that are ours, not the method's."""


BASE_MARK = "base"
"""The key of a source's parameters that is ours: this source is the method's base."""


BASE = "base"
"""In `embeddings`, `head` and `tokenizer`: the recipe's base_model."""


class Conditional(Frozen):
    """A setting for tensors whose name contains `filter` (mergekit's conditional parameter)."""

    value: Any
    filter: str | None = None


Parameters = tuple[tuple[str, Any], ...]


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "value" not in value or not set(value) <= {"value", "filter"}:
            raise ValueError(f"expected {{value: …, filter: …}}, found the keys {sorted(map(str, value))}")
        if not isinstance(value.get("filter"), (str, type(None))):
            raise ValueError(f"expected a text as filter, found {value['filter']!r}")
        return Conditional(value=_freeze(value["value"]), filter=value.get("filter"))
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    if isinstance(value, (bool, int, float, str, Conditional)):
        return value
    raise ValueError(f"expected a number, a text, true, false or a list of these, found {value!r}")


def _thaw(value: Any) -> Any:
    if isinstance(value, Conditional):
        filtered = {} if value.filter is None else {"filter": value.filter}
        return {**filtered, "value": _thaw(value.value)}
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    return value


def _freeze_parameters(value: Any) -> Any:
    if isinstance(value, tuple):
        return value
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping, found {value!r}")
    frozen = []
    for name, setting in (value or {}).items():
        try:
            frozen.append((str(name), _freeze(setting)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return tuple(frozen)


def _thaw_parameters(value: Parameters) -> dict[str, Any]:
    return {name: _thaw(setting) for name, setting in value}


SettingsField = Annotated[Parameters, BeforeValidator(_freeze_parameters), PlainSerializer(_thaw_parameters)]


def _tuple(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list, found {value!r}")
    return tuple(value)


ModelName = Annotated[str, Field(min_length=1)]


LayerRange = Annotated[tuple[int, int], BeforeValidator(_tuple)]


class Source(Frozen):
    """Consecutive layers of one model; `layer_range` is [first, past the last)."""

    model: ModelName
    layer_range: LayerRange
    parameters: SettingsField = ()

    @property
    def length(self) -> int:
        """Number of layers."""
        return self.layer_range[1] - self.layer_range[0]


class Slice(Frozen):
    """Consecutive slots made in the same way, or layers that are removed.

    `parameters` holds `op`, `method` and the method's own parameters, as in the YAML.
    """

    sources: Annotated[tuple[Source, ...], BeforeValidator(_tuple)]
    base_model: ModelName | None = None
    parameters: SettingsField = ()

    def parameter(self, name: str) -> Any:
        """The setting of that name, or None."""
        return dict(self.parameters).get(name)


class Component(Frozen):
    """Where the embeddings, or the final norm and head, come from: one member or a merge.

    Attributes:
        weights: member (a model of the recipe, or "base") -> weight in the merge, or None for
            methods that take no weights.
        method: a mergekit method; None for a single member.
        base_model: the method's base, where it is not the recipe's.
        parameters: of the method as a whole.
    """

    weights: tuple[tuple[str, float | None], ...]
    method: str | None = None
    base_model: ModelName | None = None
    parameters: SettingsField = ()


def _read_component(value: Any) -> Any:
    if isinstance(value, str):
        return Component(weights=((value, 1.0),))
    if not isinstance(value, Mapping):
        if isinstance(value, Component):
            return value
        raise ValueError(f"expected the name of a member or a mapping, found {value!r}")
    allowed = {"method", "weights", "members", "base_model", "parameters"}
    if "method" not in value or len({"weights", "members"} & set(value)) != 1 or set(value) - allowed:
        raise ValueError(
            "expected the name of a member, {method: …, weights: {member: number, …}} or {method: …, "
            f"members: [member, …], parameters: {{…}}}}, found the keys {sorted(map(str, value))}"
        )
    given = value.get("weights")
    weights: list[tuple[str, float | None]]
    if "members" in value:
        if not isinstance(value["members"], (list, tuple)):
            raise ValueError(f"members: expected a list, found {value['members']!r}")
        weights = [(str(member), None) for member in value["members"]]
    elif not isinstance(given, Mapping):
        raise ValueError(f"weights: expected a mapping, found {given!r}")
    else:
        for member, weight in given.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(f"weights.{member}: expected a finite number, found {weight!r}")
        weights = [(str(member), float(weight)) for member, weight in given.items()]
    rest = {key: value[key] for key in ("method", "base_model", "parameters") if key in value}
    return {"weights": tuple(weights), **rest}


def _write_component(value: Component) -> Any:
    if value.method is None:
        return value.weights[0][0]
    weights = dict(value.weights)
    written: dict[str, Any] = {"method": value.method}
    written |= {"members": list(weights)} if None in weights.values() else {"weights": weights}
    if value.base_model is not None:
        written["base_model"] = value.base_model
    if value.parameters:
        written["parameters"] = _thaw_parameters(value.parameters)
    return written


ComponentField = Annotated[Component, BeforeValidator(_read_component), PlainSerializer(_write_component)]


FROM_BASE = Component(weights=((BASE, 1.0),))


class GlobalParameters(Frozen):
    """The top-level `parameters`: ours, and defaults for the methods' own parameters."""

    embeddings: ComponentField = FROM_BASE
    head: ComponentField = FROM_BASE
    tokenizer: ModelName = BASE
    defaults: SettingsField = ()


_OWN = ("embeddings", "head", "tokenizer")


def _read_globals(value: Any) -> Any:
    if value is None:
        return GlobalParameters()
    if not isinstance(value, (Mapping, GlobalParameters)):
        raise ValueError(f"expected a mapping, found {value!r}")
    if isinstance(value, Mapping):
        own = {k: v for k, v in value.items() if k in _OWN}
        return {**own, "defaults": {k: v for k, v in value.items() if k not in _OWN}}
    return value


def _write_globals(value: GlobalParameters) -> dict[str, Any]:
    document = value.model_dump(exclude_defaults=True)
    defaults = document.pop("defaults", {})
    return {**document, **defaults}


class Recipe(Frozen):
    """The whole plan of a tailored model.

    Equality is equality of the document; two documents that make the same model have the same
    digest (see operations.Plan).
    """

    merge_method: Literal["tailor"] = "tailor"
    base_model: ModelName
    dtype: str | None = None
    out_dtype: str | None = None
    chat_template: str | None = None
    parameters: Annotated[
        GlobalParameters, BeforeValidator(_read_globals), PlainSerializer(_write_globals)
    ] = GlobalParameters()
    slices: Annotated[tuple[Slice, ...], BeforeValidator(_tuple)]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the recipe names, the base first, each once."""
        parts = (self.parameters.embeddings, self.parameters.head)
        named = [
            self.base_model,
            *(source.model for part in self.slices for source in part.sources),
            *(part.base_model for part in self.slices if part.base_model),
            *(self.resolve(name) for part in parts for name, _ in part.weights),
            *(self.resolve(part.base_model) for part in parts if part.base_model),
            self.resolve(self.parameters.tokenizer),
        ]
        return tuple(dict.fromkeys(named))

    def resolve(self, member: str) -> str:
        """The model behind a name in `embeddings`, `head` or `tokenizer`."""
        return self.base_model if member == BASE else member

    @classmethod
    def from_mapping(cls, document: Any, *, file: Path | str | None = None) -> Recipe:
        """Read a loaded YAML document.

        Raises:
            RecipeError: unknown keys, wrong types; with the file's lines where `file` is given.
        """
        if not isinstance(document, Mapping):
            raise RecipeError(f"expected a mapping, found {type(document).__name__}", file=file)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise RecipeError(explain(error, cls), file=file) from None

    @classmethod
    def load(cls, file: Path) -> Recipe:
        """Read a recipe from a YAML file."""
        return cls.from_mapping(read_yaml(file, RecipeError), file=file)

    def to_mapping(self) -> dict[str, Any]:
        """The document that `from_mapping` reads back to an equal recipe."""
        document = self.model_dump(exclude_defaults=True)
        return {"merge_method": self.merge_method, **document}

    def to_yaml(self) -> str:
        """The recipe as mergekit YAML."""
        return write_yaml(self.to_mapping())
