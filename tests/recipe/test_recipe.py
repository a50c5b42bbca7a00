from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.errors import RecipeError
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of

NAMES = {"base": "org/base@v1", "math": "org/math", "code": "a/code"}

names = st.text("abcdefgh_", min_size=1, max_size=8)
scalars = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(-2, 2, allow_nan=False), names)
settings = st.one_of(
    scalars,
    st.lists(scalars, max_size=3),
    st.lists(
        st.fixed_dictionaries({"filter": names, "value": st.one_of(scalars, st.lists(scalars, min_size=1))})
    ),
)
parameters = st.dictionaries(names, settings, max_size=3)
sources = st.fixed_dictionaries(
    {"model": names, "layer_range": st.tuples(st.integers(0, 9), st.integers(0, 9)).map(list)},
    optional={"parameters": parameters},
)
slices = st.fixed_dictionaries(
    {"sources": st.lists(sources, max_size=3)}, optional={"parameters": parameters, "base_model": names}
)
documents = st.fixed_dictionaries(
    {"merge_method": st.just("tailor"), "base_model": names, "slices": st.lists(slices, max_size=3)},
    optional={
        "dtype": names,
        "out_dtype": names,
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "embeddings": names,
                "head": st.builds(
                    lambda m, w: {"method": m, "weights": w}, names, st.dictionaries(names, st.floats(0, 1))
                ),
                "weight": settings,
            },
        ),
    },
)


@given(documents)
def test_a_recipe_survives_yaml(document: dict[str, Any]) -> None:
    recipe = Recipe.from_mapping(document)
    again = Recipe.from_mapping(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert hash(again) == hash(recipe)


def test_yaml_is_what_people_write() -> None:
    text = Recipe.from_mapping(recipe_of(NAMES)).to_yaml()
    assert (
        "  - sources:\n      - {model: org/math, layer_range: [0, 1]}\n    parameters: {op: select}\n" in text
    )


def test_the_digest_is_of_the_model_not_of_how_it_is_written() -> None:
    document = recipe_of(NAMES)
    first, rest = document["slices"][0], document["slices"][1:]  # type: ignore[index]
    digest = plan(Recipe.from_mapping(document)).digest
    without_removal = {**document, "slices": [first, *rest[1:]]}
    assert plan(Recipe.from_mapping(without_removal)).digest == digest
    explicit = {**document, "parameters": {"embeddings": NAMES["base"], "head": "base"}}
    assert plan(Recipe.from_mapping(explicit)).digest == digest
    other = {**document, "parameters": {"embeddings": NAMES["math"]}}
    assert plan(Recipe.from_mapping(other)).digest != digest


def test_the_digest_is_stable_across_versions_of_this_package() -> None:
    assert plan(Recipe.from_mapping(recipe_of(NAMES, dtype=None))).digest == "c207e99012f70e16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slicse": []}, "slicse: unknown key; did you mean 'slices'?"),
        ({"base_model": 3}, "base_model: input should be a valid string, found 3"),
        ({"merge_method": "tailer"}, "merge_method: expected tailor, found 'tailer'; gptailor recipe import"),
        ({"merge_method": 3}, "merge_method: input should be 'tailor', found 3"),
        ({"tokenizer_source": "union"}, "tokenizer_source: unknown key"),
        (
            {"parameters": {"head": {"method": "linear"}}},
            "parameters.head: expected the name of a member, {method",
        ),
        ({"slices": [{"sources": [{"model": "m", "layer_range": [0]}]}]}, "slices[0].sources[0].layer_range"),
        ({"slices": None}, "slices: expected a list, found None"),
        ({"slices": [None]}, "slices[0]: expected a mapping, found None"),
        (
            {"slices": [{"sources": [], "parameters": [1]}]},
            "slices[0].parameters: expected a mapping, found [1]",
        ),
        (
            {"slices": [{"sources": [], "parameters": {"t": None}}]},
            "t: expected a number, a text, true, false or",
        ),
        (
            {"slices": [{"sources": [], "parameters": {"t": float("nan")}}]},
            "t: expected a finite number, found nan",
        ),
        (
            {"slices": [{"sources": [], "parameters": {"t": {"value": 1, "filter": 2}}}]},
            "expected a text as filter",
        ),
        ({"base_model": ""}, "base_model: expected a name, not an empty text, found ''"),
        (
            {"parameters": {"head": {"method": "linear", "weights": {"base": "x"}}}},
            "weights.base: expected a finite",
        ),
        ({"slices": [{"source": []}]}, "slices[0].source: unknown key; did you mean 'sources'?"),
        (
            {"slices": [{"sources": [{"model": "m", "layer_range": [0, 1], "weight": 1}]}]},
            "slices[0].sources[0].weight: unknown key; known are layer_range, model, parameters",
        ),
        ({"slices": [{"sources": [], "parameters": {"t": {"valu": 1}}}]}, "expected {value: …, filter: …}"),
    ],
)
def test_wrong_shapes_name_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping({**recipe_of(NAMES), **change})
    assert message in str(caught.value)


def test_a_search_config_is_told_from_a_recipe() -> None:
    """Else every key of it would be a mistake of its own."""
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping({"family": {"base": "m"}, "target": {"layers": 3}, "seed": 0})
    assert str(caught.value) == (
        "family: this is a search config, which gptailor-evolve reads; expected a recipe, with slices"
    )


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="base_model: is missing"):
        Recipe.from_mapping({"merge_method": "tailor", "slices": []})


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(
        "merge_method: tailor\nbase_model: m\nslices:\n  - sources: []\n    parametres: {op: select}\n"
    )
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file)
    assert str(caught.value) == (f"{file}:5: slices[0].parametres: unknown key; did you mean 'parameters'?")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("a: [", "not valid YAML in line 1"), ("- 1", "expected a mapping, found list")],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "recipe.yml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
