"""The best merge at full size: nothing is removed, and anybody's mergekit makes the tuned model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptailor_merge.host.exporting import RECIPE, export
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.journal import Journal
from gptailor_merge.search.candidates import Status
from gptailor_merge.testing.three_models import assert_three_equal
from tests.host.test_exporting import assert_same_model
from tests.repair.test_finalists import config, run

WITHOUT_US = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "gptailor_merge":
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.weekly
def test_the_tuned_merge_is_one_configuration_of_a_mergekit_without_us(tmp_path: Path) -> None:
    settings = config(
        tmp_path,
        target={"remove": 0},
        operations={"outer": "merge"},
        search={"budget": 4, "population": 4, "warm_start": []},
        repair={"finalists": 0},
        tune={"finalists": 1, "steps": 2, "tokens": 1024, "norms": False, "weights": "tensor"},
    )
    made, _ = run(settings, tmp_path)
    with Journal(made.journal) as journal:
        best = journal.best()
    assert best is not None
    assert best.status == Status.TUNED
    assert best.plan.kept == tuple(range(12))
    operations = [s.operation for s in best.plan.slots] + [best.plan.embeddings.operation]
    assert {operation.method for operation in operations} == {"task_arithmetic"}
    recipe = Recipe.load(made.best)
    assert_three_equal(recipe, tmp_path / "ours")
    plain, blocked = tmp_path / "plain", tmp_path / "blocked"
    plain.mkdir()
    assert not export(*check_with_family(recipe), plain)
    assert [file.name for file in plain.iterdir()] == [RECIPE]
    assert yaml.safe_load((plain / RECIPE).read_text())["merge_method"] == "task_arithmetic"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(WITHOUT_US)
    command = [str(Path(sys.executable).parent / "mergekit-yaml"), RECIPE, str(tmp_path / "stock")]
    environment = {**os.environ, "PYDANTIC_DISABLE_PLUGINS": "gptailor", "PYTHONPATH": str(blocked)}
    subprocess.run(command, cwd=plain, env=environment, check=True, capture_output=True)
    assert_same_model(tmp_path / "ours", tmp_path / "stock")
