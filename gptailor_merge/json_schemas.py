"""JSON Schemas of search configs and recipes, by which editors complete keys and find mistakes.

They are generated from the classes that validate the documents. What a class checks beyond keys and types, a
schema does not know: `gptailor recipe lint` and `gptailor-evolve --dry-run` do.

    python -m gptailor_merge.json_schemas docs/schemas
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import gptailor_merge
from gptailor_merge.config import SearchConfig
from gptailor_merge.documents import Frozen
from gptailor_merge.objectives.bounds import gate_class
from gptailor_merge.objectives.registry import BUILT_IN
from gptailor_merge.planning import operations
from gptailor_merge.recipe.fields import SETTING, SETTINGS
from gptailor_merge.recipe.recipe import OWN, Recipe
from gptailor_merge.search_section import RULE

DocumentKind = Literal["search", "recipe"]
"""Names a schema, and its file."""


DIRECTORY = "schemas"
"""The directory of the schemas: inside the package in a wheel, in docs/ in a checkout."""


MODELINE = "# yaml-language-server: $schema="
"""The beginning of the line by which a YAML file names its schema to editors."""


_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_REFERENCE = "#/$defs/"

_SENTENCE = re.compile(r"^ {8}(\w[\w, ]*): ((?:.*\n?)(?: {9,}.*\n?)*)", re.MULTILINE)
"""Matches what a docstring says of an attribute, or of several."""


def schema_file(kind: DocumentKind) -> Path:
    """Returns the file of a schema on this machine."""
    package = Path(gptailor_merge.__file__).parent
    places = (package / DIRECTORY, package.parent / "docs" / DIRECTORY)
    return next(place for place in places if place.is_dir()) / f"{kind}.json"


def schemas() -> dict[DocumentKind, dict[str, Any]]:
    """Returns name -> JSON Schema."""
    return {"search": search_schema(), "recipe": recipe_schema()}


def search_schema() -> dict[str, Any]:
    """Returns the schema of search configs, with the kinds of objectives that this package has."""
    kinds = tuple(dict.fromkeys(BUILT_IN.values()))
    gates = tuple(gate_class(kind) for kind in kinds)
    definitions = _definitions(SearchConfig, *kinds, *gates)
    config = definitions.pop(SearchConfig.__name__)
    for section, classes in (("objectives", kinds), ("held_out", kinds), ("gates", gates)):
        known = [{"$ref": f"{_REFERENCE}{kind.__name__}"} for kind in classes]
        config["properties"][section]["items"] = {"anyOf": [*known, _foreign_kind()]}
    definitions["SearchSection"]["properties"]["pick"]["pattern"] = f"^(?:{RULE.pattern})$"
    config["properties"]["environment"] = {
        "type": "object",
        "description": "The versions of libraries, as a run records them.",
    }
    return _whole("A search config of gptailor-evolve", config, definitions)


def recipe_schema() -> dict[str, Any]:
    """Returns the schema of recipes."""
    definitions = _definitions(Recipe)
    recipe = definitions.pop(Recipe.__name__)
    whole = definitions["GlobalParameters"]
    del whole["properties"]["defaults"]
    whole["additionalProperties"] = SETTING
    whole["type"] = ["object", "null"]
    keys: dict[str, Any] = {key: {} for key in OWN}
    keys["op"] = {"anyOf": [{"enum": list(operations.BUILT_IN)}, {"type": "string"}]}
    keys["method"] = {"type": "string", "description": "A merge method."}
    definitions["Slice"]["properties"]["parameters"] = {**SETTINGS, "properties": keys}
    return _whole("A recipe of gptailor", recipe, definitions)


def write_schemas(directory: Path) -> None:
    """Writes a file for each schema."""
    for kind, schema in schemas().items():
        (directory / f"{kind}.json").write_text(text_of(schema), encoding="utf-8")


def text_of(schema: dict[str, Any]) -> str:
    """Returns a schema as its file has it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def modeline(kind: DocumentKind, directory: Path) -> str:
    """Returns the line by which a file in a directory names its schema to editors.

    The path is relative where the schema lies below the directory, as in an environment of a project.
    """
    file, here = schema_file(kind).resolve(), directory.resolve()
    place = str(file.relative_to(here) if file.is_relative_to(here) else file)
    return f"{MODELINE}{file.as_uri() if ' ' in place else place}"


def _whole(title: str, schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    named = {name: definitions[name] for name in sorted(_reached(schema, definitions))}
    return {"$schema": _DIALECT, "title": title, **schema, "$defs": named}


def _foreign_kind() -> dict[str, Any]:
    kind = {"type": "string", "not": {"enum": list(BUILT_IN)}}
    return {
        "type": "object",
        "description": "An objective of a kind that another package offers.",
        "required": ["kind"],
        "properties": {"kind": kind},
    }


def _definitions(*models: type[BaseModel]) -> dict[str, Any]:
    """Returns name -> schema of classes and of those inside them, with what their docstrings say."""
    _, whole = models_json_schema([(model, "validation") for model in models])
    by_name = {model.__name__: model for model in _subclasses(Frozen)}
    return {name: _described(schema, by_name[name]) for name, schema in whole["$defs"].items()}


def _described(schema: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Returns the schema of a class with the sentences of its docstring, and without titles."""
    sentences = attribute_sentences(model)
    properties = {
        name: {
            **{key: value for key, value in entry.items() if key != "title" and not _is_bulky(key, value)},
            **({"description": sentences[name]} if name in sentences else {}),
        }
        for name, entry in schema.get("properties", {}).items()
    }
    summary = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    rest = {key: value for key, value in schema.items() if key not in ("title", "description", "properties")}
    return {**({"description": summary} if summary else {}), **rest, "properties": properties}


def attribute_sentences(model: type[BaseModel]) -> dict[str, str]:
    """Returns key -> what the docstrings of a class and its bases say of it under `Attributes`."""
    sentences: dict[str, str] = {}
    for base in reversed(model.__mro__):
        block = (base.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        for names, text in _SENTENCE.findall(block):
            sentence = " ".join(text.split())
            sentences |= {name.strip(): sentence[0].upper() + sentence[1:] for name in names.split(",")}
    return {name: sentence for name, sentence in sentences.items() if name in model.model_fields}


def _is_bulky(key: str, value: Any) -> bool:
    """Tells whether an entry is the default of a whole section, which says nothing that its keys do not."""
    return key == "default" and (value is None or isinstance(value, dict))


def _reached(schema: Any, definitions: dict[str, Any]) -> set[str]:
    """Returns the names of the definitions that a schema uses, be it through others."""
    names: set[str] = set()
    waiting = [schema]
    while waiting:
        for name in _references(waiting.pop()):
            if name not in names:
                names.add(name)
                waiting.append(definitions[name])
    return names


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(_REFERENCE)
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
