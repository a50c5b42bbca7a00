"""gptailor tune: a recipe and texts in, a recipe with fitted merge weights and gains out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gptailor_merge.api.tunings import tune
from gptailor_merge.cli.app import app
from gptailor_merge.errors import DataError, InputError, RecipeError
from gptailor_merge.planning.check import check
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal
from gptailor_merge.tuning import checkpoint
from gptailor_merge.tuning.tuned_recipe import TunedRecipe, tune_recipe
from gptailor_merge.tuning.tuner import TuneOptions
from tests.conftest import DEMO
from tests.repair.test_repaired_recipe import demo

MEMBERS = {name: str(DEMO / "family" / name) for name in ("stories", "maths")}
TEXTS = {name: str(DEMO / "calibration" / f"{name}.jsonl") for name in ("stories", "maths")}
FEW = TuneOptions(steps=3, step_tokens=256)


def run(recipe: Recipe, out: Path, options: TuneOptions = FEW, **settings: Any) -> TunedRecipe:
    out.mkdir(exist_ok=True)
    standard: dict[str, Any] = {"members": MEMBERS, "teachers": {}, "tokens": 1024, "sequence_length": 128}
    return tune_recipe(
        recipe, TEXTS, out, options=options, device=torch.device("cpu"), **{**standard, **settings}
    )


@pytest.fixture(scope="module")
def block() -> Recipe:
    """The base without the layers 4 and 5."""
    slices = (("base", 0, 4, "select"), ("base", 4, 6, "remove"), ("base", 6, 12, "select"))
    return demo(*slices, dtype="float32", out_dtype="bfloat16")


def test_a_tuned_recipe_is_better_and_one_model_by_every_way(block: Recipe, tmp_path: Path) -> None:
    tuned = run(block, tmp_path / "gains")
    assert tuned.tuning.after < tuned.tuning.before - 0.01
    assert 0 < tuned.fitted_tokens < 1024
    slots = check(tuned.recipe).slots
    assert {slot.operation.method for slot in slots} == {"task_arithmetic"}
    assert {tuple(model for model, _ in slot.layers) for slot in slots} == {tuned.recipe.models}
    assert_three_equal(tuned.recipe, tmp_path / "model")
    assert plan(Recipe.from_mapping(tuned.recipe.to_mapping())) == plan(tuned.recipe)


def test_without_gains_the_recipe_is_all_there_is(block: Recipe, tmp_path: Path) -> None:
    options = TuneOptions(steps=2, sharing="layer", norms=False, step_tokens=512)
    tuned = run(block, tmp_path / "out", options)
    assert tuned.tuning.helps
    assert list((tmp_path / "out").iterdir()) == []
    assert "gains" not in tuned.recipe.to_yaml()
    weights = {
        dict(settings)["weight"]
        for slot in plan(tuned.recipe).slots
        for settings in slot.operation.inputs[1:]
    }
    assert all(isinstance(weight, float) and round(weight, 5) == weight for weight in weights)


def test_tuning_goes_on_from_what_was_tuned(block: Recipe, tmp_path: Path) -> None:
    """Also where a member is spelled in another way than in the recipe."""
    first = run(block, tmp_path / "first")
    spelled = {"maths": os.path.relpath(MEMBERS["maths"])}
    second = run(first.recipe, tmp_path / "second", members=spelled)
    assert second.recipe.models == first.recipe.models
    assert second.tuning.before == pytest.approx(first.tuning.after, abs=1e-6)
    assert second.tuning.after < first.tuning.after


def test_the_command_writes_recipe_and_gains(block: Recipe, tmp_path: Path) -> None:
    file, out = tmp_path / "recipe.yml", tmp_path / "tuned"
    file.write_text(block.to_yaml())
    arguments = ["tune", str(file), "--out", str(out), "--device", "cpu", "--json", "--steps", "1"]
    arguments += ["--tokens", "1024", "--sequence-length", "128", "--weights", "layer"]
    for name in ("stories", "maths"):
        arguments += ["--data", f"{name}={TEXTS[name]}", "--member", f"{name}={MEMBERS[name]}"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)
    assert result["helps"]
    assert result["after"] < result["before"]
    assert sorted(file.name for file in out.iterdir()) == ["gains.safetensors", "recipe.yml"]
    assert check(Recipe.load(out / "recipe.yml"), file=out / "recipe.yml").fitted_norms == tuple(range(10))


def test_what_was_killed_goes_on_when_it_is_asked_for_again(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    file = tmp_path / "block.yml"
    file.write_text(block.to_yaml())
    told: list[str] = []

    def tuned(on_step: Callable[[str], None] = told.append) -> TunedRecipe:
        data = [f"{name}={text}" for name, text in TEXTS.items()]
        sizes: dict[str, Any] = {"steps": 2, "tokens": 512, "sequence_length": 64, "device": "cpu"}
        return tune(file, data, tmp_path / "tuned", members=MEMBERS, on_step=on_step, **sizes)

    def kill(step: str) -> None:
        if step.startswith("tuning, step 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(kill)
    assert {path.name for path in tmp_path.iterdir()} == {"block.yml", ".tuned.tuning.safetensors"}
    again = tuned()
    assert [step.split(":")[0] for step in told if step.startswith("tuning, step")] == ["tuning, step 2 of 2"]
    assert again.tuning.fit.steps == 2
    assert {path.name for path in tmp_path.iterdir()} == {"block.yml", "tuned"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": {"maths": "math"}}, "the teacher 'math' is no member; known are base, stories, maths"),
        ({"sequence_length": 2048}, "no file has 4 sequences"),
        (
            {"members": {"copy": f"{DEMO}/family/./base"}},
            "the member copy, .*, is the base or another member",
        ),
    ],
)
def test_what_cannot_be_tuned_is_said(
    block: Recipe, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((RecipeError, DataError), match=message):
        run(block, tmp_path / "out", **settings)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--weights", "head"), "--weights: expected layer, part, tensor, found 'head'"),
        (("--member", "maths"), "--member: expected NAME=MODEL, found 'maths'"),
        (("--teacher", "=maths"), "--teacher: expected NAME=MEMBER, found '=maths'"),
    ],
)
def test_an_option_of_another_form_is_one_sentence(
    block: Recipe, tmp_path: Path, option: tuple[str, str], message: str
) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(block.to_yaml())
    arguments = ["tune", str(file), "--data", TEXTS["maths"], "--out", str(tmp_path / "out"), *option]
    answer = CliRunner().invoke(app, arguments)
    assert isinstance(answer.exception, InputError)
    assert message in str(answer.exception)
    assert not (tmp_path / "out").exists()
