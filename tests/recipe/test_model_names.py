"""One directory is one model, however a recipe spells it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, RecipeError
from gptailor_merge.models.family import Family
from gptailor_merge.planning.check import check
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.model_names import with_one_name_each
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of


@pytest.mark.parametrize("spelling", ["{}/", "./{}", "{}//", "./{}/.", "../here/{}", "{here}/{}"])
def test_spellings_of_one_directory_are_one_model(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, directory in family.items():
        os.symlink(directory, name)
    plain = recipe_of({name: name for name in family}, parameters={"embeddings": "math", "head": "math"})
    other = spelling.format("math", here=Path.cwd())
    mixed = recipe_of({name: name for name in family}, parameters={"embeddings": other, "head": "math"})
    recipe, expected = Recipe.from_mapping(mixed), Recipe.from_mapping(plain)
    assert check(recipe) == plan(recipe) == plan(expected)
    assert len(Family.of_recipe(recipe).members) == 3
    twice = {"method": "linear", "weights": {"math": 0.5, other: 0.5}}
    repeated = Recipe.from_mapping(recipe_of({n: n for n in family}, parameters={"embeddings": twice}))
    with pytest.raises(RecipeError, match="a model appears twice"):
        check(repeated)


def test_a_slash_at_the_end_is_left_out_and_hub_ids_stay() -> None:
    document = recipe_of({"base": "org/base@main", "math": "nowhere/", "code": "./org/code"})
    recipe = with_one_name_each(Recipe.from_mapping(document))
    assert recipe.models == ("org/base@main", "nowhere", "./org/code")
    assert with_one_name_each(recipe) is recipe


def test_a_search_config_has_one_name_for_a_directory(
    family: dict[str, str], tmp_path: Path, texts: dict[str, str]
) -> None:
    for name, directory in family.items():
        os.symlink(directory, tmp_path / name)
    file = tmp_path / "search.yml"
    text = "family: {base: base/, variants: {math: ./%s/}}\ntarget: {layers: 4}\nobjectives: [{kind: parameters}]\n"
    file.write_text(text % "math")
    assert SearchConfig.load(file).family.variants == {"math": str(Path(family["math"]).resolve())}
    file.write_text(text % "base")
    with pytest.raises(ConfigError, match="the same model as base; members must differ"):
        SearchConfig.load(file)


@pytest.mark.parametrize("read", [SearchConfig.load, Recipe.load], ids=["config", "recipe"])
def test_a_key_that_stands_twice_is_an_error(read: object, tmp_path: Path) -> None:
    file = tmp_path / "file.yml"
    file.write_text("seed: 1\nslices:\n  - {a: 1,\n     b: 2, a: 3}\n")
    with pytest.raises(
        (ConfigError, RecipeError), match=r"in line 4: the key 'a' is there already, in line 3"
    ):
        read(file)  # type: ignore[operator]
    file.write_text("base: &b {x: 1}\nmerged: {<<: *b, x: 2}\nagain: {<<: *b}\n1: a\n'1': b\n")
    with pytest.raises((ConfigError, RecipeError)) as caught:
        read(file)  # type: ignore[operator]
    assert "already" not in str(caught.value)
