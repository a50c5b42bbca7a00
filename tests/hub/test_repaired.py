"""A run whose best recipe is repaired, or healed too, is published with its files, and built again from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from gptailor_merge.api.hub import preview_push, push
from gptailor_merge.composing.adapter_places import with_adapter
from gptailor_merge.errors import InputError, RecipeError
from gptailor_merge.healing.facts import FACTS, HealingFacts
from gptailor_merge.host.materialize import materialize
from gptailor_merge.hub.bundle import bundle
from gptailor_merge.hub.parents import LOCAL
from gptailor_merge.hub.release import release_of
from gptailor_merge.hub.reproduce import FILES, compare, rebuild
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.edits import map_files, with_whole_paths
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.formatting import listed
from gptailor_merge.report.page import write_report
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.search.candidates import Status
from tests.conftest import DEMO
from tests.repair.test_finalists import config
from tests.repair.test_finalists import run as searched


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("repaired")
    made, _ = searched(config(directory, held_out=True, repair={"finalists": 1}), directory)
    materialize(Recipe.load(made.best), made.model, file=made.best)
    return made


def test_maps_are_published_and_the_model_is_built_again_from_them(run: Run, tmp_path: Path) -> None:
    directory = bundle(release_of(run.record(), "mit"), "user/name")
    recipe = Recipe.load(directory / "mergekit_config.yml")
    files = map_files(recipe)
    assert files
    for file, own in zip(files, map_files(Recipe.load(run.best)), strict=True):
        assert Path(file).parts[0] == "repair"
        assert (directory / file).read_bytes() == (run.path / own).read_bytes()
    names = [model.removeprefix(LOCAL) for model in recipe.models]
    rebuild(directory, {name: str(DEMO / "family" / name) for name in names}, tmp_path / "again")
    assert compare(directory, tmp_path / "again").equal


def test_the_card_says_what_was_fitted_to_what(run: Run) -> None:
    text = (bundle(release_of(run.record(), "mit"), "user/name") / "README.md").read_text(encoding="utf-8")
    assert "maps were fitted to calibration texts in closed form" in text
    assert "solve a regression on the calibration texts (maths, stories)" in text
    assert "1 of them repaired at the end" in text
    assert str(run.path) not in text


def test_the_report_shows_what_repairs_cost_and_gave(run: Run) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert "1 of them repaired at the end" in page
    assert "outcome-repaired" in page
    assert f"Repaired: slots {listed(plan(Recipe.load(run.best)).repaired)}." in page


@pytest.fixture(scope="module")
def healed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run with an adapter on its best recipe, as a user's own training may have left it."""
    made = Run(tmp_path_factory.mktemp("healed") / "run")
    shutil.copytree(run.path, made.path)
    before = Recipe.load(made.best)
    slots = len(plan(with_whole_paths(before, made.path)).slots)
    adapter = made.path / "healed" / "adapter"
    adapter.mkdir(parents=True)
    torch.manual_seed(2)
    width = json.loads((run.model / "config.json").read_text())["hidden_size"]
    paths = [f"base_model.model.model.layers.{slot}.self_attn.o_proj" for slot in range(slots)]
    down = {f"{path}.lora_A.weight": torch.randn(2, width) for path in paths}
    up = {f"{path}.lora_B.weight": torch.randn(width, 2) / 8 for path in paths}
    save_file({**down, **up}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}
    config["base_model_name_or_path"] = str(run.model)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    recipe = with_adapter(before, adapter, name="healed/adapter")
    made.best.write_text(recipe.to_yaml())
    facts = {"texts": {"sums": "0"}, "tokens": 4096, "seconds": 9.0, "device": "cpu", "rank": 2}
    HealingFacts.model_validate({"method": "lora", "teachers": {"sums": "base"}, **facts}).write(made.path)
    with Journal(made.journal) as journal:
        best = journal.best()
        assert best is not None
        assert best.loss is not None
        digest = plan(with_whole_paths(recipe, made.path)).digest
        better = replace(
            best, digest=digest, recipe=recipe.to_yaml(), loss=best.loss - 1, status=Status.TUNED
        )
        journal.record_tuning(best.digest, better)
    materialize(recipe, made.model, file=made.best, replace=True)
    return made


def test_an_adapter_is_published_and_the_healed_model_is_built_again_from_it(
    run: Run, healed: Run, tmp_path: Path
) -> None:
    directory = bundle(release_of(healed.record(), "mit"), "user/name")
    recipe = Recipe.load(directory / "mergekit_config.yml")
    assert recipe.parameters.adapter == "adapter"
    assert sorted(file.name for file in (directory / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (2, None)
    members = {
        name: str(DEMO / "family" / name) for name in (model.removeprefix(LOCAL) for model in recipe.models)
    }
    fetched = tmp_path / "fetched"
    names = [str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()]
    for name in filter_repo_objects(names, allow_patterns=FILES):
        (fetched / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(directory / name, fetched / name)
    rebuild(fetched, members, tmp_path / "again")
    assert compare(directory, tmp_path / "again").equal
    assert not compare(run.model, tmp_path / "again").equal
    record = json.loads((directory / "gptailor_run.json").read_text())
    assert record["healed"]["tokens"] == 4096
    for name, change in (
        ("../adapter", "names the adapter '../adapter'"),
        ("adapter", "lacks adapter/adapter_"),
    ):
        text = (directory / "mergekit_config.yml").read_text()
        (directory / "mergekit_config.yml").write_text(text.replace("adapter: adapter", f"adapter: {name}"))
        shutil.rmtree(directory / "adapter", ignore_errors=True)
        with pytest.raises(RecipeError, match=change):
            rebuild(directory, members, tmp_path / "refused")
        (directory / "mergekit_config.yml").write_text(text)


def test_card_and_page_of_a_healed_run_say_how_it_was_trained(healed: Run) -> None:
    card = (bundle(release_of(healed.record(), "mit"), "user/name") / "README.md").read_text(encoding="utf-8")
    first_lines = card.split("## What was removed")[0]
    assert "healed: trained after pruning, with a LoRA adapter of rank 2 on o_proj (" in first_lines
    assert "The model was **healed**: after the layers were chosen, a LoRA adapter of rank 2" in first_lines
    trained = "The adapter was trained on 4,096 tokens of sums, taught by base (sums), in 9 s on cpu"
    assert f"{trained}." in first_lines
    assert "maps in closed form were fitted to calibration texts" in first_lines
    for denial in ("no training", "not healed", "No weight was trained", "No other weight"):
        assert denial not in card
    page = write_report(healed).read_text(encoding="utf-8")
    assert "Healed: a LoRA adapter of rank 2 on o_proj (" in page
    assert trained in page
    assert str(healed.path) not in card + page
    (healed.path / FACTS).unlink()
    page = write_report(healed).read_text(encoding="utf-8")
    assert "is added to the layers." in page
    assert trained not in page


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("full", "all weights of this model were trained, so that no recipe rebuilds it; expected a run"),
        ("lora", "a healed recipe and no run; expected the directory of a search, which heals its best"),
    ],
)
def test_what_the_command_heal_has_written_is_no_run(method: str, message: str, tmp_path: Path) -> None:
    facts = {"method": method, "texts": {}, "tokens": 1, "seconds": 1.0, "device": "cpu"}
    HealingFacts.model_validate(facts).write(tmp_path)
    for path in (tmp_path, tmp_path / "model"):
        path.mkdir(exist_ok=True)
        for publish in (preview_push, push):
            with pytest.raises(InputError, match=message) as caught:
                publish(path, "user/name")
            assert str(caught.value).startswith(f"{path}: ")
