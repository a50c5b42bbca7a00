"""Another package adds an operation by an entry point, without a change in this one."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.cli.app import main
from gptailor_merge.host.materialize import materialize
from gptailor_merge.recipe.recipe import Recipe
from tests.host.test_hook import SCRIPTS, assert_same_weights, run, write
from tests.packages import command, install

MODULE = '''
"""Blends two sources: share of the first, the rest of the second."""

from gptailor_merge.errors import Problem
from gptailor_merge.recipe.plan import Operation, Slot


class Blend:
    takes_base_model = False

    def method_of(self, part):
        return "linear"

    def problems(self, recipe, part):
        if len(part.sources) != 2:
            yield Problem(("sources",), f"blend takes two sources, found {len(part.sources)}")
        if not isinstance(part.parameter("share"), float):
            yield Problem(("parameters",), "share is missing; blend takes a number between 0 and 1")
        for name, _ in part.parameters:
            if name not in ("op", "share"):
                yield Problem(("parameters", name), "unknown parameter of blend; known are share")

    def slots(self, recipe, part):
        share = part.parameter("share")
        inputs = ((("weight", share),), (("weight", 1 - share),))
        for offset in range(part.sources[0].length):
            layers = tuple((source.model, source.layer_range[0] + offset) for source in part.sources)
            yield Slot(layers, Operation("linear", inputs))
'''
CONTRACT = """
from gptailor_merge.testing.operations import LayerOperationContract


class TestBlend(LayerOperationContract):
    op = "blend"

    def slice_of(self, family, first, past):
        sources = [{"model": family[name], "layer_range": [first, past]} for name in ("base", "math")]
        return {"sources": sources, "parameters": {"op": "blend", "share": 0.25}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that holds the package as an installer would leave it; this process finds it, too."""
    site = offer(tmp_path / "site", "blend = blending:Blend")
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("blending", None)


def offer(site: Path, entry: str) -> Path:
    entry_points = f"[gptailor_merge.operations]\n{entry}\n"
    return install(site, "gptailor-blend", entry_points, {"blending": textwrap.dedent(MODULE)})


def python_path(site: Path) -> str:
    return os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])


def document(family: dict[str, str], **parameters: Any) -> dict[str, Any]:
    sources = [{"model": family[name], "layer_range": [1, 3]} for name in ("base", "math")]
    select = {"sources": [{"model": family["base"], "layer_range": [0, 1]}], "parameters": {"op": "select"}}
    slices = [select, {"sources": sources, "parameters": parameters}]
    return {
        "merge_method": "tailor",
        "base_model": family["base"],
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "slices": slices,
    }


def test_a_recipe_with_the_operation_is_checked_merged_and_run_by_mergekit(
    family: dict[str, str], package: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "recipe.yml", document(family, op="blend", share=0.25))
    done = command(main, "recipe", "lint", file)
    assert done.returncode == 0, done.stderr
    assert "sound; 3 layers" in done.stdout
    out = str(tmp_path / "out")
    done = command(main, "merge", file, out)
    assert done.returncode == 0, done.stderr
    stock = str(tmp_path / "stock")
    done = run([str(SCRIPTS / "mergekit-yaml"), file, stock], PYTHONPATH=python_path(package))
    assert done.returncode == 0, done.stderr
    same = document(family, op="merge", method="linear")
    for source, weight in zip(same["slices"][1]["sources"], (0.25, 0.75), strict=True):
        source["parameters"] = {"weight": weight}
    materialize(Recipe.from_mapping(same), tmp_path / "same")
    assert_same_weights(tmp_path / "out", tmp_path / "same")
    assert_same_weights(tmp_path / "stock", tmp_path / "same")


def test_the_operation_finds_its_own_mistakes(family: dict[str, str], package: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "recipe.yml", document(family, op="blend"))
    done = command(main, "recipe", "lint", file)
    assert done.returncode == 2
    assert "slices[1].parameters: share is missing; blend takes a number between 0 and 1" in done.stderr
    wrong = write(tmp_path / "wrong.yml", document(family, op="blnd", share=0.5))
    done = command(main, "recipe", "lint", wrong)
    assert "unknown op, found 'blnd'; did you mean 'blend'?" in done.stderr


def test_an_operation_that_cannot_be_imported_is_one_message(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = offer(tmp_path / "site", "blend = blending:Missing")
    file = write(tmp_path / "recipe.yml", document(family, op="blend", share=0.5))
    monkeypatch.syspath_prepend(site)
    done = command(main, "recipe", "lint", file)
    assert done.returncode == 2
    assert "the op 'blend' of gptailor-blend cannot be imported from blending:Missing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.weekly
def test_the_contract_that_ships_holds_for_it(package: Path, tmp_path: Path) -> None:
    (tmp_path / "test_blend.py").write_text(CONTRACT)
    pytest_command = [
        str(SCRIPTS / "pytest"),
        "-q",
        "-p",
        "no:cacheprovider",
        str(tmp_path / "test_blend.py"),
    ]
    done = run(pytest_command, cwd=tmp_path, PYTHONPATH=python_path(package))
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
