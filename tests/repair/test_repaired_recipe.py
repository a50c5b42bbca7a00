"""gptailor repair: a recipe and texts in, a recipe with maps out."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gptailor_merge.cli.app import app
from gptailor_merge.errors import ConfigError, DataError, RecipeError
from gptailor_merge.planning.check import check
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.fitting import LEAST_GAIN, RIDGES, Repairer
from gptailor_merge.repair.repaired_recipe import RECIPE, RepairedRecipe, repair_recipe
from gptailor_merge.space.space import Space
from gptailor_merge.testing.three_models import assert_three_equal
from tests.conftest import DEMO, recipe_of

CPU = torch.device("cpu")
TEXTS = {name: str(DEMO / "calibration" / f"{name}.jsonl") for name in ("stories", "maths")}


def run(recipe: Recipe, data: dict[str, str], out: Path, **settings: Any) -> RepairedRecipe:
    out.mkdir(exist_ok=True)
    return repair_recipe(
        recipe,
        data,
        out,
        **{"tokens": 4096, "sequence_length": 128, "device": CPU, "everywhere": False, **settings},
    )


def demo(*slices: tuple[str, int, int, str], **top: Any) -> Recipe:
    """Layers of the built-in family, as (member, first, past the last, op)."""
    parts = [
        {"sources": [{"model": str(DEMO / "family" / m), "layer_range": [a, b]}], "parameters": {"op": op}}
        for m, a, b, op in slices
    ]
    base = str(DEMO / "family" / "base")
    return Recipe.from_mapping({"merge_method": "tailor", "base_model": base, "slices": parts, **top})


@pytest.fixture(scope="module")
def block() -> Recipe:
    """The base without the layers 3, 4 and 5."""
    return demo(
        ("base", 0, 3, "select"), ("base", 3, 6, "remove"), ("base", 6, 12, "select"), dtype="float32"
    )


def test_a_repaired_recipe_is_better_and_one_model_by_every_way(block: Recipe, tmp_path: Path) -> None:
    """On the trained family, where a cut of three layers costs much and a map gives much back."""
    repaired = run(block, TEXTS, tmp_path / "maps")
    (cut,) = repaired.cuts
    assert (cut.slot, cut.removed) == (2, (3, 6))
    assert cut.ridge in RIDGES
    assert cut.before is not None
    assert cut.after is not None
    assert cut.after < cut.before - 0.1
    assert_three_equal(repaired.recipe, tmp_path / "out")
    texts = [
        (len(part.sources), part.parameter("op"), part.parameter("repair")) for part in repaired.recipe.slices
    ]
    file = str(tmp_path / "maps" / "repair-2.safetensors")
    assert texts == [(1, "select", None), (1, "select", file), (1, "remove", None), (1, "select", None)]


def test_the_same_again_is_the_same(block: Recipe, tmp_path: Path) -> None:
    first, second = (run(block, TEXTS, tmp_path / name) for name in ("a", "b"))
    assert first.cuts == second.cuts
    assert plan(first.recipe).digest == plan(second.recipe).digest


def test_everywhere_tries_every_slot_after_the_cut_while_maps_help(block: Recipe, tmp_path: Path) -> None:
    at_cuts = run(block, TEXTS, tmp_path / "cuts")
    repaired = run(block, TEXTS, tmp_path / "all", everywhere=True)
    slots = [cut.slot for cut in repaired.cuts]
    assert slots == list(range(2, 2 + len(slots)))  # up to the cut the state is the base's
    assert all(cut.gain >= LEAST_GAIN for cut in repaired.cuts[:-1])
    assert slots[-1] == 8 or repaired.cuts[-1].gain < LEAST_GAIN
    assert [i for i, slot in enumerate(plan(repaired.recipe).slots) if slot.edits] == [
        cut.slot for cut in repaired.cuts if cut.ridge is not None
    ]
    assert repaired.cuts[-1].after is not None
    assert at_cuts.cuts[-1].after is not None
    assert repaired.cuts[-1].after < at_cuts.cuts[-1].after
    assert_three_equal(repaired.recipe, tmp_path / "out")


def test_a_map_that_does_not_help_leaves_no_file(
    block: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = count(1.0)
    monkeypatch.setattr(Repairer, "_loss", lambda *_: next(losses))
    repaired = run(block, TEXTS, tmp_path / "maps", tokens=1024)
    assert [(cut.slot, cut.ridge, cut.before, cut.after) for cut in repaired.cuts] == [(2, None, 1.0, 1.0)]
    assert list((tmp_path / "maps").iterdir()) == []
    assert plan(repaired.recipe).digest == plan(block).digest


def test_gradients_of_a_slice_that_is_split_stay_what_they_were(tmp_path: Path) -> None:
    """Layers 1 and 2 are merged with a weight that rises; the second is before a cut."""
    document = demo(
        ("base", 0, 1, "select"), ("base", 1, 3, "merge"), ("base", 3, 6, "remove"), ("base", 6, 12, "select")
    ).to_mapping()
    merged = document["slices"][1]
    merged["parameters"] |= {"method": "task_arithmetic"}
    stories = str(DEMO / "family" / "stories")
    rising = {"model": stories, "layer_range": [1, 3], "parameters": {"weight": [0.2, 0.8]}}
    merged["sources"] = [*merged["sources"], rising]
    recipe = Recipe.from_mapping({**document, "dtype": "float32"})
    repaired = run(recipe, TEXTS, tmp_path / "maps")
    before, after = plan(recipe).slots, plan(repaired.recipe).slots
    assert [(s.layers, s.operation) for s in before] == [(s.layers, s.operation) for s in after]
    assert [i for i, slot in enumerate(after) if slot.edits] == [2]
    assert before[1].operation != before[2].operation
    assert Recipe.from_mapping(repaired.recipe.to_mapping()) == repaired.recipe
    assert_three_equal(repaired.recipe, tmp_path / "out")


def test_what_cannot_be_repaired_is_said(
    family: dict[str, str], tmp_path: Path, texts: dict[str, str]
) -> None:
    document: dict[str, Any] = recipe_of(family)
    document["slices"][0]["parameters"]["without"] = "mlp"
    repaired = run(Recipe.from_mapping(document), texts, tmp_path / "maps", tokens=512, sequence_length=16)
    assert [cut.note for cut in repaired.cuts] == ["the layer before it is without its MLP"]
    assert repaired.recipe == Recipe.from_mapping(document)


def test_there_must_be_a_cut_and_no_repair_yet(block: Recipe, tmp_path: Path) -> None:
    whole = demo(("base", 0, 12, "select"))
    with pytest.raises(RecipeError, match="there is nothing to repair"):
        run(whole, TEXTS, tmp_path / "maps")
    without_start = demo(("base", 0, 3, "remove"), ("base", 3, 12, "select"))
    with pytest.raises(RecipeError, match="no layer is missing behind another"):
        run(without_start, TEXTS, tmp_path / "maps")
    repaired = run(block, TEXTS, tmp_path / "maps")
    with pytest.raises(RecipeError, match="is repaired already; repair the recipe that it was made of"):
        run(repaired.recipe, TEXTS, tmp_path / "again")


def test_too_little_text_is_refused(block: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file has 4 sequences"):
        run(block, TEXTS, tmp_path / "maps", tokens=256, sequence_length=128)


def test_the_command_writes_a_recipe_with_its_maps(block: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "block.yml"
    file.write_text(block.to_yaml())
    out = tmp_path / "repaired"
    data = [argument for path in TEXTS.values() for argument in ("--data", path)]
    settings = ["--tokens", "2048", "--sequence-length", "128"]
    command = ["repair", str(file), *data, *settings, "--at-cuts"]
    done = CliRunner().invoke(app, [*command, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    (cut,) = json.loads(done.stdout)["cuts"]
    assert cut["after"] < cut["before"]
    assert sorted(f.name for f in out.iterdir()) == [RECIPE, "repair-2.safetensors"]
    written = check(Recipe.load(out / RECIPE))
    assert [bool(slot.edits) for slot in written.slots] == [False, False, True] + [False] * 6
    table = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "b")])
    assert "fitted to 2,048 tokens" in table.stdout


@pytest.mark.parametrize(
    "edit",
    [
        {"without": "mlp"},
        {"repair": "m", "repair_digest": "0" * 16},
    ],
)
def test_a_search_does_not_start_from_edited_layers_as_if_they_were_plain(edit: dict[str, str]) -> None:
    document: dict[str, Any] = recipe_of({"base": "org/b", "math": "org/m", "code": "org/c"})
    space = Space(
        models=("org/b", "org/m", "org/c"),
        depth=5,
        sizes=(4,),
        removable=(1, 2, 3),
        methods=("task_arithmetic",),
        dtype="float32",
    )
    space.encode(plan(Recipe.from_mapping(document)), nearest=True)
    healed = {"out_dtype": "bfloat16", "parameters": {"adapter": "a", "adapter_digest": "0" * 16}}
    with pytest.raises(ConfigError, match="layers, methods or parameters that this space does not have"):
        space.encode(plan(Recipe.from_mapping({**document, **healed})), nearest=True)
    document["slices"][0]["parameters"].update(edit)
    with pytest.raises(ConfigError, match="layers, methods or parameters that this space does not have"):
        space.encode(plan(Recipe.from_mapping(document)), nearest=True)
