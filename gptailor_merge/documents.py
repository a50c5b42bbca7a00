"""Reads and writes YAML documents, writes JSON, and words what pydantic finds wrong in documents."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from gptailor_merge.bounded_files import MOST_TEXT, read_bounded
from gptailor_merge.errors import MOST_SHOWN, InputError, KeyPath, Problem
from gptailor_merge.visible_text import shortened
from gptailor_merge.yaml_nodes import DEEPEST, MOST_VALUES, compose_all, load


class Frozen(BaseModel):
    """A hashable pydantic value that accepts no unknown keys and converts no types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Dumper(yaml.SafeDumper):
    """Writes short lists and layer sources on one line, as people write recipes."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


class _FastDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # chosen at run time
    """Writes as libyaml does, which leaves no choice of indentation."""


def _is_flat(value: Any) -> bool:
    return not isinstance(value, (list, tuple, dict))


def _represent_list(dumper: yaml.SafeDumper, data: Any) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=all(map(_is_flat, data)))


def _represent_dict(dumper: yaml.SafeDumper, data: Mapping[str, Any]) -> yaml.Node:
    flow = "layer_range" in data or all(map(_is_flat, data.values()))
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flow)


for _dumper in (_Dumper, _FastDumper):
    _dumper.add_representer(list, _represent_list)
    _dumper.add_representer(tuple, _represent_list)
    _dumper.add_representer(dict, _represent_dict)


def write_yaml(*documents: Mapping[str, Any]) -> str:
    """Returns documents as YAML text, separated by `---`.

    >>> print(write_yaml({"op": "merge", "sources": [{"model": "base", "layer_range": [0, 2]}]}), end="")
    op: merge
    sources:
      - {model: base, layer_range: [0, 2]}
    """
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=160)


def write_yaml_fast(document: Mapping[str, Any]) -> str:
    """Returns a document as YAML text that reads less well than that of `write_yaml`, five times as fast."""
    text: str = yaml.dump(document, Dumper=_FastDumper, sort_keys=False, allow_unicode=True, width=160)
    return text


def refuse_excess(file: Path, error: type[InputError]) -> None:
    """Looks at the documents of a YAML file that somebody else has read, as `read_yaml` does at one.

    Raises:
        error: a mapping has a key twice, or a document holds more than any of ours.
    """
    try:
        text = read_bounded(file).decode("utf-8")
    except (OSError, UnicodeDecodeError):  # e.g. a pipe, which has been read
        return
    try:
        compose_all(text)
    except yaml.YAMLError as cause:
        raise error(_yaml_problem(cause, text), file=file) from None


def read_yaml(file: Path, error: type[InputError]) -> Any:
    """Loads a YAML file.

    Raises:
        error: the file is absent, cannot be read, is not YAML, or is larger than any document of ours.
    """
    return parse_yaml(read_text(file, error), error, file=file)


def parse_yaml(text: str, error: type[InputError], *, file: Path | str | None = None) -> Any:
    """Loads a YAML text.

    Raises:
        error: the text is not YAML, or holds more than any document of ours.
    """
    try:
        return load(text)
    except yaml.YAMLError as cause:
        raise error(_yaml_problem(cause, text), file=file) from None


def _yaml_problem(cause: yaml.YAMLError, text: str) -> str:
    mark = getattr(cause, "problem_mark", None)
    # The end of a text counts as a line of its own.
    place = f" in line {min(mark.line, text.count(chr(10))) + 1}" if mark else ""
    reason = " ".join(str(getattr(cause, "problem", None) or cause).split())
    return f"not valid YAML{place}: {reason}"


def read_text(file: Path, error: type[InputError], most: int = MOST_TEXT) -> str:
    """Reads a text file in UTF-8.

    Raises:
        error: the file is absent, is none, has more than `most` bytes, or cannot be read.
    """
    try:
        return read_bounded(file, most).decode("utf-8-sig")
    except FileNotFoundError:
        raise error("no such file", file=file) from None
    except OSError as cause:
        raise error(f"cannot be read: {cause.strerror or cause}", file=file) from None
    except UnicodeDecodeError as cause:
        raise error(f"cannot be read: {cause}", file=file) from None


LARGEST = 10**18
"""Integers of a document lie between this and its negative."""


def excess(document: Any) -> str | None:
    """Returns why a value that YAML gave is no document of ours, or None: what YAML's aliases repeat counts.

    >>> endless = []
    >>> endless.append(endless)
    >>> excess({"slices": endless})
    'expected at most 40 levels of lists and mappings, found more'
    """
    left = [MOST_VALUES]

    def walk(value: Any, level: int) -> str | None:
        left[0] -= 1
        if left[0] < 0:
            return f"expected at most {MOST_VALUES:,} values, found more"
        if level > DEEPEST:
            return f"expected at most {DEEPEST} levels of lists and mappings, found more"
        if isinstance(value, int):
            return None if abs(value) < LARGEST else "expected numbers of at most 18 digits, found a longer"
        children: Iterable[Any] = ()
        if isinstance(value, Mapping):
            children = (child for pair in value.items() for child in pair)
        elif isinstance(value, (list, tuple, set, frozenset)):
            children = value
        return next((text for child in children if (text := walk(child, level + 1))), None)

    return walk(document, 0)


def json_text(document: Any, **options: Any) -> str:
    """Returns a document as JSON, which has no NaN and no infinity: they become null.

    Args:
        options: of json.dumps.

    >>> json_text({"loss": float("nan"), "scores": (1.0, float("inf"))})
    '{"loss": null, "scores": [1.0, null]}'
    """
    return json.dumps(_finite(document), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Returns a validation error's findings as problems: key, value, and what would be right.

    Args:
        model: the class that was validated; its fields are suggested for unknown keys.
    """
    problems: list[Problem] = []
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
            known = finding.get("ctx", {}).get("known") or _keys_at(model, finding["loc"][:-1])
            if _is_internal(finding["loc"][-1]):  # a key may look like what pydantic adds
                path = (*path, finding["loc"][-1])
            # To compare names takes time, and an error lists few problems.
            message = "unknown key" + (suggest(str(path[-1]), known) if len(problems) < MOST_SHOWN else "")
        elif finding["type"] == "missing":
            message = "is missing"
        else:
            text = finding["msg"].removeprefix("Value error, ")
            text = _EXPECTED.get(finding["type"], text)
            value = "" if "found" in text else f", found {shortened(repr(finding['input']), 300)}"
            message = text[0].lower() + text[1:] + value
        problems.append(Problem(path, message))
    return problems


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], value: Any) -> Model:
    """Reads a value as a model that another model's validator has chosen; `explain` then knows its keys.

    Raises:
        ValidationError: unknown keys carry the keys that the chosen model has.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        findings = [
            InitErrorDetails(
                type=PydanticCustomError(
                    finding["type"],
                    "{message}",
                    {
                        "message": finding["msg"],
                        **finding.get("ctx", {}),
                        **_known_keys(model, finding["type"], finding["loc"]),
                    },
                ),
                loc=finding["loc"],
                input=finding["input"],
            )
            for finding in error.errors(include_url=False)
        ]
        raise ValidationError.from_exception_data(error.title, findings) from None


def _known_keys(model: type[BaseModel], kind: str, path: tuple[str | int, ...]) -> dict[str, Any]:
    """Returns what an error about an unknown key carries, for `explain`."""
    return {"known": _keys_at(model, path[:-1])} if kind == "extra_forbidden" else {}


_EXPECTED = {
    "tuple_type": "expected a list",
    "too_short": "expected at least one entry",
    "model_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "string_too_short": "expected a name, not an empty text",
}
"""Finding type -> our sentence, for findings that pydantic words in terms of Python."""


def _is_internal(part: str | int) -> bool:
    """Tells whether pydantic added a part to a location that no document has, e.g. a union's branch."""
    return isinstance(part, str) and ("[" in part or part in ("Origin", "GlobalParameters"))


def _keys_at(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """Returns the keys that are allowed at a place in a document."""
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


def suggest(unknown: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: the nearest known name, or all of them.

    >>> suggest("wieght", ["weight", "density"])
    "; did you mean 'weight'?"
    >>> suggest("x", ["weight", "density"])
    '; known are density, weight'
    """
    known = sorted(known)
    close = difflib.get_close_matches(unknown, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known are {', '.join(known)}" if known else ""
