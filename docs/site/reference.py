"""Writes the reference pages from the commands, from the models that validate documents, and from the API.

    python docs/site/reference.py

The pages are committed, so that they can be read without building the site; tests/test_reference.py says
when one is out of date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

import gptailor_merge
from gptailor_merge.cli.app import app, evolve_app
from gptailor_merge.config import SearchConfig
from gptailor_merge.objectives.bounds import Bound
from gptailor_merge.objectives.config_types import DatasetConfig, FileConfig
from gptailor_merge.objectives.registry import BUILT_IN
from gptailor_merge.recipe.fields import Origin, Parameters
from gptailor_merge.recipe.recipe import OWN, GlobalParameters, Recipe, Slice, Source

PAGES = Path(__file__).parents[1] / "reference"

TEXTS: Mapping[str, type[BaseModel]] = {"a file or directory": FileConfig, "a data set": DatasetConfig}
"""Form of an entry of `data` -> the model that reads it."""

NESTED = {
    "FileConfig": "a file",
    "DatasetConfig": "a data set",
    "StartRecipe": "a recipe",
}
"""Words for values that have no table of their own where they are named."""

OF_RECIPES: Mapping[Any, str] = {Origin: "a member, or a merge of members", Parameters: "name: setting"}
"""Words for values of recipes, which are written otherwise than they are kept."""

LONGEST = 60
"""Characters of a default that is shown."""

PLURALS = {"text": "texts", "whole number": "whole numbers", "a section": "entries"}

PROGRAMS: Mapping[str, typer.Typer] = {"gptailor-evolve": evolve_app, "gptailor": app}

GENERATED = "<!-- Written by docs/site/reference.py from {source}; change it there. -->"


def commands() -> Iterator[tuple[str, TyperCommand]]:
    """Yields each command as a user types it, with its description."""
    for program, program_app in PROGRAMS.items():
        yield from _commands_of(program, get_command(program_app))


def _commands_of(name: str, command: Any) -> Iterator[tuple[str, TyperCommand]]:
    if isinstance(command, TyperGroup):
        for child, inner in command.commands.items():
            yield from _commands_of(f"{name} {child}", inner)
    else:
        yield name, command


def options_of(command: TyperCommand) -> list[TyperOption]:
    """Returns the options of a command, without those that typer adds to every program."""
    options = [parameter for parameter in command.params if isinstance(parameter, TyperOption)]
    return [option for option in options if not option.name.endswith("_completion")]


def sections_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yields the sections of a document and the models that read them, each before those inside it."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield prefix + name, inner
            yield from sections_of(inner, f"{prefix}{name}.")


def fields_of(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """Returns key, type, default and meaning of each field."""
    schema = model.model_json_schema()
    meanings = _meanings(model)
    rows = []
    for name, field in model.model_fields.items():
        value = schema["properties"][name]
        default = "required" if field.is_required() else _value(value.get("default"))
        words = OF_RECIPES.get(field.annotation) or _type(value, schema)
        rows.append((name, words, default, meanings.get(name, "")))
    return rows


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Returns the attributes that the docstrings of a model and its bases describe."""
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        for name, meaning in re.findall(r"^ {4}(\w[\w, ]*): (.+(?:\n {8}.+)*)", text, re.MULTILINE):
            meanings |= dict.fromkeys(name.split(", "), " ".join(meaning.split()).removesuffix("."))
    return meanings


def _value(value: Any) -> str:
    """Writes a default as a user would; one that is a whole section has a table of its own."""
    if value is None or isinstance(value, Mapping):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == []:
        return "none"
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return f"`{text}`" if len(text) <= LONGEST else f"{len(value)} of our own"


def _type(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Says in words what a JSON schema allows."""
    if "$ref" in schema:
        return NESTED.get(schema["$ref"].rpartition("/")[2], "a section")
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            types = [_type(one, root) for one in schema[choice] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(types))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_type(item, root) for item in schema['prefixItems'])}]"
        words = _type(schema["items"], root)
        return f"list of {PLURALS.get(words, words)}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"name: {_type(inner, root)}" if isinstance(inner, Mapping) else "a section"
    word = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return word.get(str(kind), "a value") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    texts = {
        "minimum": " from {:g}",
        "exclusiveMinimum": " above {:g}",
        "maximum": " to {:g}",
        "exclusiveMaximum": " below {:,}",
    }
    return "".join(text.format(schema[key]) for key, text in texts.items() if key in schema)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def _fields(model: type[BaseModel], omitted: Sequence[str] = ()) -> list[str]:
    rows = [(f"`{n}`", t, d, m) for n, t, d, m in fields_of(model) if n not in omitted]
    return _table(("key", "takes", "default", "what it is"), rows)


def _first_paragraph(value: object) -> str:
    return " ".join(inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].split())


def commands_page() -> str:
    """Returns the page on all commands."""
    lines = [
        "# Commands",
        "",
        GENERATED.format(source="the commands themselves"),
        "",
        "The same text is printed by `--help`. An option whose value ends with `...` takes several: "
        "`--data a.jsonl b.jsonl`. Exit codes: 0 done, 1 the work failed or what was checked is not so, "
        "2 the input is wrong, 130 stopped by Ctrl-C. `gptailor --version` prints the version.",
    ]
    for name, command in commands():
        arguments = [p for p in command.params if isinstance(p, TyperArgument)]
        required = [f"{o.opts[0]} {o.metavar or o.name.upper()}" for o in options_of(command) if o.required]
        taken = [a.metavar or a.name.upper() for a in arguments]
        shown = [_repeated(text, a) for text, a in zip(taken, arguments, strict=True)]
        usage = " ".join([name, *shown, *required, "[OPTIONS]"])
        lines += ["", f"## {name}", "", *_help(command.help), "", "```", usage, "```", ""]
        rows = [
            (f"`{name}`", "required" if argument.required else "", _plain(argument.help))
            for name, argument in zip(taken, arguments, strict=True)
        ]
        rows += [(_option(option), _default(option), _plain(option.help)) for option in options_of(command)]
        lines += _table(("", "default", "what it is"), rows)
    return "\n".join(lines) + "\n"


def _repeated(name: str, argument: TyperArgument) -> str:
    return name if argument.nargs == 1 else f"[{name}...]"


def _help(text: str | None) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n")]


def _plain(text: str | None) -> str:
    return re.sub(r"\[/?bold\]|\[/\]", "`", text or "")


def _option(option: TyperOption) -> str:
    names = "/".join((*option.opts, *option.secondary_opts))
    return f"`{names}`" if option.is_flag else f"`{names} {option.metavar or _kind(option)}`"


def _kind(option: TyperOption) -> str:
    is_number = isinstance(option.default, (int, float)) or option.min is not None
    return "N" if is_number else option.opts[0][2:].upper()


def _default(option: TyperOption) -> str:
    if option.required:
        return "required"
    if option.is_flag:
        name = option.opts[0] if option.default else "".join(option.secondary_opts)
        return f"`{name}`" if name and option.default is not None else ""
    return "" if option.default is None else f"`{option.default}`"


def search_config_page() -> str:
    """Returns the page on all keys of a search config."""
    lines = [
        "# Search config",
        "",
        GENERATED.format(source="the models that read a search config"),
        "",
        "All keys of the file that `gptailor-evolve` and `gptailor baseline` read. [Searching](../search.md) "
        "explains how they play together. An unknown key is an error that names the line. Relative paths "
        "start at the file; `~` is the home directory.",
        "",
        "## The file",
        "",
        *_fields(SearchConfig),
    ]
    for section, model in sections_of(SearchConfig):
        lines += ["", f"## {section}", "", _first_paragraph(model), "", *_fields(model)]
    lines += ["", "## Texts", "", "Where a key takes texts (`data`), each name has a path, or one of these:"]
    for form, model in TEXTS.items():
        lines += ["", f"### {form}", "", *_fields(model)]
    lines += [
        "",
        "## objectives, gates and held_out",
        "",
        "Each entry has a `kind`, and the keys of its kind. Other packages add kinds, see "
        "[Extending](../extending.md).",
    ]
    kinds: dict[type[BaseModel], list[str]] = {}
    for kind, model in BUILT_IN.items():
        kinds.setdefault(model, []).append(kind)
    for model, names in kinds.items():
        lines += ["", f"### {', '.join(names)}", "", _first_paragraph(model), "", *_fields(model, ("kind",))]
    lines += ["", "### gates", "", "An entry of `gates` has a bound besides:", "", *_fields(Bound, ("kind",))]
    return "\n".join(lines) + "\n"


def recipe_page() -> str:
    """Returns the page on all keys of a recipe."""
    lines = [
        "# Recipe",
        "",
        GENERATED.format(source="the models that read a recipe"),
        "",
        "All keys of a recipe, a mergekit configuration with `merge_method: tailor`. "
        "[Recipes](../recipes.md) explains them by examples.",
        "",
        "## The file",
        "",
        *_fields(Recipe),
        "",
        "## parameters",
        "",
        _first_paragraph(GlobalParameters),
        "",
        *_fields(GlobalParameters, ("defaults",)),
        "",
        "Other keys here are defaults of the merge methods' parameters.",
        "",
        "## slices",
        "",
        _first_paragraph(Slice),
        "",
        *_fields(Slice),
        "",
        f"Keys of `parameters` that belong to the recipe are {', '.join(f'`{key}`' for key in OWN)}, see "
        "[Recipes](../recipes.md#what-a-slice-may-say). All others are parameters of the merge method.",
        "",
        "## slices: sources",
        "",
        _first_paragraph(Source),
        "",
        *_fields(Source),
    ]
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """Returns the page on the public names."""
    lines = [
        "# Python API",
        "",
        GENERATED.format(source="`gptailor_merge.__all__`"),
        "",
        "Every name is one of `import gptailor_merge as gptailor`. Functions take paths or values, and have "
        "the options of the commands as keywords with the same defaults. Errors are on the page on "
        "[troubleshooting](../troubleshooting.md); an example is in [Python](../python.md).",
    ]
    names = [name for name in gptailor_merge.__all__ if name != "__version__" and not name.endswith("Error")]
    groups = {
        "Functions": [name for name in names if name.islower()],
        "Classes": [name for name in names if not name.islower()],
    }
    for title, members in groups.items():
        lines += ["", f"## {title}"]
        for name in members:
            value = getattr(gptailor_merge, name)
            lines += ["", f"### {name}"]
            if name.islower():
                lines += ["", "```", _signature(name, value), "```"]
            place = f"{value.__module__}.{value.__qualname__}"
            lines += ["", f"<!-- api: {place} -->", "", _first_paragraph(value), "", "<!-- /api -->"]
    return "\n".join(lines) + "\n"


def _signature(name: str, function: Any) -> str:
    parameters = []
    has_star = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            has_star = True
            parameters.append("*")
        value = "…" if callable(parameter.default) else repr(parameter.default)
        default = "" if parameter.default is parameter.empty else f"={value}"
        parameters.append(f"{parameter.name}{default}")
    text = f"{name}({', '.join(parameters)})"
    return text if len(text) <= 100 else f"{name}(\n    " + ",\n    ".join(parameters) + ",\n)"


def pages() -> dict[str, str]:
    """Returns file name -> text of all reference pages."""
    return {
        "commands.md": commands_page(),
        "search-config.md": search_config_page(),
        "recipe.md": recipe_page(),
        "api.md": api_page(),
    }


def main() -> None:
    """Writes the pages."""
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
