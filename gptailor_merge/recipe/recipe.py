"""The recipe: a frozen value, losslessly read from and written to mergekit YAML.

Only the shape is checked here (keys, types). What the keys mean is in operations.py.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from gptailor_merge.errors import InputError, KeyPath, Problem, RecipeError

BASE = "base"
"""In `embeddings`, `head` and `tokenizer`: the recipe's base_model."""


class Frozen(BaseModel):
    """A hashable value that takes no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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


Settings = Annotated[Parameters, BeforeValidator(_freeze_parameters), PlainSerializer(_thaw_parameters)]


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
    parameters: Settings = ()

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
    parameters: Settings = ()

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
    parameters: Settings = ()


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
    defaults: Settings = ()


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


class _Dumper(yaml.SafeDumper):
    """Short lists and layer sources on one line, as people write recipes."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _is_flat(value: Any) -> bool:
    return not isinstance(value, (list, tuple, dict))


def _represent_list(dumper: _Dumper, data: Any) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=all(map(_is_flat, data)))


def _represent_dict(dumper: _Dumper, data: Mapping[str, Any]) -> yaml.Node:
    flow = "layer_range" in data or all(map(_is_flat, data.values()))
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flow)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)
_Dumper.add_representer(dict, _represent_dict)


def write_yaml(*documents: Mapping[str, Any]) -> str:
    """Documents as people write them; several are parted by `---`."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=160)


def read_yaml(file: Path, error: type[InputError]) -> Any:
    """Load a YAML file; whatever is wrong with it is an `error` that names it."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error("no such file", file=file) from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"cannot be read: {cause}", file=file) from None
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise error(f"not valid YAML{place}: {getattr(cause, 'problem', cause)}", file=file) from None


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """pydantic's findings in our words: the key, what was found, what would be right."""
    problems = []
    findings = error.errors(include_url=False)
    places = {finding["loc"] for finding in findings}
    for finding in findings:
        depth = len(finding["loc"])
        if finding["type"] == "too_short" and any(p[:depth] == finding["loc"] != p for p in places):
            continue  # pydantic counts entries that are wrong as missing
        path: KeyPath = tuple(
            part for part in finding["loc"] if part != "defaults" and not _is_internal(part)
        )
        if finding["type"] == "extra_forbidden":
            known = _keys_at(model, finding["loc"][:-1])
            message = f"unknown key{suggest(str(path[-1]), known)}"
        elif finding["type"] == "missing":
            message = "is missing"
        else:
            text = finding["msg"].removeprefix("Value error, ")
            text = _EXPECTED.get(finding["type"], text)
            found = "" if "found" in text else f", found {finding['input']!r}"
            message = text[0].lower() + text[1:] + found
        problems.append(Problem(path, message))
    return problems


_EXPECTED = {
    "tuple_type": "expected a list",
    "too_short": "expected at least one entry",
    "model_type": "expected a mapping",
    "string_too_short": "expected a name, not an empty text",
}
"""pydantic's words for what YAML calls otherwise."""


def _is_internal(part: str | int) -> bool:
    """Parts of a location that pydantic adds and no document has, e.g. a union's branch."""
    return isinstance(part, str) and ("[" in part or part in ("Component", "GlobalParameters"))


def _keys_at(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """The keys that are allowed at a place in a document."""
    fields: Any = model
    candidates: list[type[BaseModel]] = []
    for part in path:
        if isinstance(part, str) and part in getattr(fields, "model_fields", {}):
            candidates = _models_in(fields.model_fields[part].annotation)
            if not candidates:
                return []
            fields = candidates[0]
        elif isinstance(part, str) and _is_internal(part):
            fields = next((c for c in candidates if c.__name__ == part.strip("[]")), fields)
    return [f.alias or name for name, f in getattr(fields, "model_fields", {}).items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]


def suggest(found: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` or `; known: …`, to put behind a message about an unknown name."""
    known = sorted(known)
    close = difflib.get_close_matches(found, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(known)}" if known else ""
