"""A run whose best recipe is repaired is published with its maps, and built again from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor_merge.host.materialize import materialize
from gptailor_merge.hub.bundle import bundle
from gptailor_merge.hub.parents import LOCAL
from gptailor_merge.hub.release import release_of
from gptailor_merge.hub.reproduce import compare, rebuild
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.edits import map_files
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.formatting import listed
from gptailor_merge.report.page import write_report
from gptailor_merge.runs.run import Run
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
