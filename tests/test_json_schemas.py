"""The schemas that editors use say what the readers of configs and recipes say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from gptailor_merge.config import SearchConfig
from gptailor_merge.json_schemas import (
    DocumentKind,
    attribute_sentences,
    modeline,
    schema_file,
    schemas,
    text_of,
)
from gptailor_merge.objectives.kl import KLConfig
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of

ROOT = Path(__file__).parent.parent
SCHEMAS = schemas()
YAML_FILES = [
    *sorted((ROOT / "recipes").glob("*.yml")),
    *sorted((ROOT / "recipes" / "demo").glob("*.yml")),
    *sorted((ROOT / "tests" / "runs" / "data").rglob("*.yml")),
]


def kind_of(document: dict[str, Any]) -> DocumentKind:
    return "recipe" if "merge_method" in document else "search"


def mistakes(kind: DocumentKind, document: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMAS[kind])
    return [error.json_path for error in validator.iter_errors(document)]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_files_are_those_of_the_classes(kind: DocumentKind) -> None:
    """`python -m gptailor_merge.json_schemas docs/schemas` writes them."""
    assert schema_file(kind) == ROOT / "docs" / "schemas" / f"{kind}.json"
    assert schema_file(kind).read_text(encoding="utf-8") == text_of(SCHEMAS[kind])
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_there_is_valid(file: Path) -> None:
    """All that this repository holds, and runs of version 0.1.0."""
    document = yaml.safe_load(file.read_text())
    assert mistakes(kind_of(document), document) == []


@pytest.mark.parametrize("file", [f for f in YAML_FILES if "recipes" in f.parts], ids=lambda file: file.stem)
def test_files_name_their_schema_from_where_they_are(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=../")
    kind = kind_of(yaml.safe_load(file.read_text()))
    assert (file.parent / first.partition("$schema=")[2]).resolve() == schema_file(kind).resolve()


SEARCH: dict[str, Any] = {
    "family": {"base": "a", "variants": {"b": "c"}},
    "target": {"layers": [4, 6]},
    "objectives": [{"kind": "kl", "data": {"x": "x.txt"}}],
}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"tagret": {}}, "$"),
        ({"family": {"variants": {}}}, "$.family"),
        ({"objectives": []}, "$.objectives"),
        ({"objectives": [{"kind": "kl", "data": {"x": "x.txt"}, "tokesn": 5}]}, "$.objectives[0]"),
        ({"objectives": [{"kind": "kl", "data": {"x": 5}}]}, "$.objectives[0]"),
        ({"gates": [{"kind": "perplexity", "data": {"x": "x"}, "at_most": "2 times"}]}, "$.gates[0]"),
        ({"search": {"budget": 0}}, "$.search.budget"),
        ({"search": {"pick": "best"}}, "$.search.pick"),
        ({"seed": 2**32}, "$.seed"),
        ({"dtype": "float8"}, "$.dtype"),
    ],
)
def test_mistakes_of_search_configs_are_found_by_schema_and_reader(
    change: dict[str, Any], place: str
) -> None:
    assert mistakes("search", SEARCH) == []
    assert mistakes("search", {**SEARCH, **change}) == [place]
    with pytest.raises(ValidationError):
        SearchConfig.model_validate({**SEARCH, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"gates": [{"kind": "perplexity", "data": {"x": "x"}, "at_most": "1.5 x base"}]},
        {
            "objectives": [
                {"kind": "kl", "data": {"x": {"file": "x.txt", "column": "y"}}, "teacher": {"x": "b"}}
            ]
        },
        {"held_out": [{"kind": "task", "tasks": ["piqa"]}, {"kind": "kv_cache"}]},
        {"search": {"start": ["best.yml"], "pick": "best:kl", "warm_start": None}},
        {"environment": {"torch": "2.13"}},
    ],
)
def test_what_the_reader_allows_the_schema_allows(change: dict[str, Any]) -> None:
    document = {**SEARCH, **change}
    assert mistakes("search", document) == []
    SearchConfig.model_validate({key: value for key, value in document.items() if key != "environment"})


def test_kinds_of_other_packages_are_allowed() -> None:
    assert mistakes("search", {**SEARCH, "objectives": [{"kind": "entropy", "data": {}}]}) == []


@pytest.mark.parametrize(
    "change",
    [
        {
            "parameters": {
                "embeddings": "base",
                "head": {"method": "linear", "weights": {"base": 0.5}},
                "weight": 1,
            }
        },
        {
            "parameters": {
                "head": {"method": "ties", "members": ["base", {"model": "x", "parameters": {"a": 1}}]}
            }
        },
        {"parameters": {"gains": "g.safetensors", "gains_digest": "1"}},
        {"parameters": None},
    ],
)
def test_recipes(family: dict[str, str], change: dict[str, Any]) -> None:
    document = {**recipe_of(family), **change}
    Recipe.from_mapping(document)
    assert mistakes("recipe", json.loads(json.dumps(document))) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"base_modle": "x"}, "$"),
        ({"slices": 5}, "$.slices"),
        ({"parameters": {"head": {"method": "linear"}}}, "$.parameters.head"),
        ({"parameters": {"weight": {"filter": "mlp"}}}, "$.parameters.weight"),
    ],
)
def test_mistakes_of_recipes_are_found_by_schema_and_reader(
    family: dict[str, str], change: dict[str, Any], place: str
) -> None:
    document = {**recipe_of(family), **change}
    assert mistakes("recipe", json.loads(json.dumps(document))) == [place]
    with pytest.raises(ValidationError):
        Recipe.model_validate(document)


def test_every_key_of_a_search_config_is_explained() -> None:
    definitions = {**SCHEMAS["search"]["$defs"], "config": SCHEMAS["search"]}
    without = [
        f"{name}.{key}"
        for name in (
            "config",
            "Operations",
            "SearchSection",
            "RepairSection",
            "TuneSection",
            "HealSection",
            "Target",
        )
        for key, entry in definitions[name]["properties"].items()
        if not entry.get("description")
    ]
    assert without == []
    assert attribute_sentences(KLConfig)["teacher"].startswith("The member to stay close to")


def test_the_line_of_a_file_is_relative_where_the_schema_is_below(tmp_path: Path) -> None:
    assert modeline("search", ROOT) == "# yaml-language-server: $schema=docs/schemas/search.json"
    assert modeline("recipe", tmp_path).endswith(f"$schema={schema_file('recipe').resolve()}")
