"""A run is opened by its directory, and nothing outside the runs room reads its files."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path

import pytest
import yaml

import gptailor_merge
from gptailor_merge.cli.searches import show
from gptailor_merge.errors import ConfigError, InputError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.runs.run import Run
from tests.report.runs import CONFIG, candidate, one_recipe, write

PACKAGE = Path(gptailor_merge.__file__).parent


def test_a_run_is_opened_from_its_first_moment_on(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe())
    assert Run.open(str(run.path)) == run
    assert Run.open(run.path).summary().loss == 0.3
    run.journal.unlink()
    with pytest.raises(InputError, match="no such journal; expected a run directory"):
        Run.open(run.path).record()


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_directory_without_a_run_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name}: no such run; expected a run directory of gptailor-evolve"):
        Run.open(tmp_path / name)


def test_objectives_of_a_package_that_is_gone_are_named(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe(), objectives=[{"kind": "of_another_package"}])
    with pytest.raises(ConfigError, match=r"config\.yml:\d+: objectives\[0\].*'of_another_package'"):
        run.summary()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "config.yml: expected a mapping, found list"),
        ("family: {", "config.yml: not valid YAML"),
        (
            yaml.safe_dump({**CONFIG, "environment": 1.5}),
            "environment: expected library: version, found float",
        ),
        (yaml.safe_dump({**CONFIG, "sead": 1}), r"sead: unknown key; did you mean 'seed'\?"),
    ],
)
def test_a_config_that_cannot_be_read_is_said(text: str, message: str, tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe())
    run.config.write_text(text)
    with pytest.raises(ConfigError, match=message):
        run.record()


def test_a_pick_needs_a_front_and_a_score(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe())
    with pytest.raises(ConfigError, match="--pick chooses from a front; this run sought one recipe"):
        run.summary("knee")
    empty = write(tmp_path / "empty", [candidate(0, "failed", None, 0.1)])
    with pytest.raises(ConfigError, match="no candidate has been scored yet"):
        empty.summary()


def test_numbers_that_json_lacks_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endless = {"perplexity": {"a": Score(800.0, 10, "perplexity"), "b": Score(math.nan, 10, "perplexity")}}
    candidates = [candidate(0, "scored", math.inf, 0.1, scores=endless)]
    run = write(tmp_path / "run", candidates, held_out={"base": endless})
    show(run.path, as_json=True)
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert shown["loss"] is None
    assert shown["held_out"]["base"]["perplexity"] == {"a": None, "b": None, "total": None}


SCRATCH_JOURNALS = ("api/open_session.py", "testing/baselines.py")
"""They search into a journal of their own, which belongs to no run."""


def docstrings(tree: ast.Module) -> set[ast.expr]:
    """The texts that stand alone, as statements."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] != "runs"],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_config_and_journal_are_read_in_the_runs_room_only(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    told = docstrings(tree)
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in told
    ]
    # mergekit_config.yml, the recipe beside a model, is another file.
    assert not [text for text in texts if re.search(r"\b(config\.yml|journal\.db)\b", text)]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    if str(file.relative_to(PACKAGE)) not in SCRATCH_JOURNALS:
        assert "gptailor_merge.runs.journal" not in imported
