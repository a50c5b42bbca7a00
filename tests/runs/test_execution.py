"""A run that has everything at once: tasks, several sizes, gates, a held-out set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, SearchError
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.summary import Summary

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def config(family: dict[str, str], texts: dict[str, str], tasks: Path) -> SearchConfig:
    of_task = {"kind": "task", "include_path": str(tasks), "split": "test"}
    return SearchConfig.model_validate(
        {
            "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
            "target": {"layers": [2, 4]},
            "objectives": [
                {**of_task, "tasks": ["tiny_choice"], "metric": "margin"},
                {**of_task, "tasks": ["tiny_generation"], "metric": "exact_match", "limit": 3},
                {"kind": "parameters"},
            ],
            "gates": [
                {
                    "kind": "perplexity",
                    "data": texts,
                    "tokens": 64,
                    "sequence_length": 16,
                    "at_most": "1.2 x base",
                },
                {"kind": "repetition", "data": texts, "prompts": 2, "new_tokens": 8, "at_most": 1.0},
            ],
            "search": {"budget": 16, "population": 8},
            "allow_test_split": True,
        }
    )


def run(config: SearchConfig, directory: Path, **options: Any) -> tuple[Run, Summary]:
    done = execute(config, Run(directory), torch.device("cpu"), **options)
    return done, done.summary()


def test_a_front_is_found_written_reported_and_picked_from(config: SearchConfig, tmp_path: Path) -> None:
    directory, summary = run(config, tmp_path / "run")
    files = {file.stem: Recipe.load(file) for file in directory.pareto.glob("*.yml")}
    assert [row.recipe.stem for row in summary.front] == sorted(files)
    for row in summary.front:
        assert len(plan(files[row.recipe.stem]).slots) == row.layers
        assert set(row.scores) == {"margin", "exact_match", "parameters"}
    assert set(summary.held_out) == {"base", "math", "code", FOUND, *files}
    assert directory.best.read_text() in {file.read_text() for file in directory.pareto.glob("*.yml")}
    assert summary.scores["gate: perplexity"]["total"] > 0
    # One split serves both, so that each has its own items.
    with Journal(directory.journal) as journal:
        items = {(scored.section, scored.objective): set(scored.ids) for scored in journal.items()}
    assert items["objectives", "margin"] | items["held_out", "margin"] == set(range(12))
    assert not items["objectives", "margin"] & items["held_out", "margin"]
    assert [(gap.objective, gap.sets) for gap in summary.gaps] == [
        ("margin", ("tiny_choice",)),
        ("exact_match", ("tiny_generation",)),
    ]
    for gap in summary.gaps:
        assert gap.low <= gap.difference <= gap.high
        assert gap.held_out == summary.held_out[FOUND][gap.objective]["total"]
    assert [sentence.split(":")[0] for sentence in summary.warnings] == ["tiny_choice", "tiny_generation"]
    assert json.loads(json.dumps(summary.to_json()))["warnings"] == list(summary.warnings)
    for row in summary.front:
        picked = directory.summary(f"layers={row.layers}")
        assert picked.recipe in {same.recipe for same in summary.front if same.layers == row.layers}
        assert picked.held_out[FOUND] == picked.held_out[picked.recipe.stem]
    with pytest.raises(ConfigError, match=r"search\.pick: no such objective"):
        directory.summary("best:accuracy")


def test_another_pick_changes_the_best_and_not_the_search(config: SearchConfig, tmp_path: Path) -> None:
    _, summary = run(config, tmp_path / "run")
    smallest = min(summary.front, key=lambda row: row.layers).layers
    again, picked = run(config.override(pick=f"layers={smallest}"), tmp_path / "run", resume=True)
    assert len(plan(Recipe.load(again.best)).slots) == smallest
    assert picked.counts == summary.counts
    with pytest.raises(ConfigError, match="no such size; searched are 2, 3, 4 layers, found 'layers=5'"):
        run(config.override(pick="layers=5"), tmp_path / "run", resume=True)


def test_a_bound_that_nothing_keeps_to_is_told(config: SearchConfig, tmp_path: Path) -> None:
    gates = (config.gates[0].model_copy(update={"at_most": 0.5}),)
    with pytest.raises(
        SearchError,
        match=r"none of 16 candidates could be scored, \d+ were kept out by gates",
    ):
        run(config.model_copy(update={"gates": gates}), tmp_path / "run")
    with Journal(Run(tmp_path / "run").journal) as journal:
        causes = {c.cause for c in journal.candidates() if c.status == "gated"}
    assert causes
    assert all(
        str(cause).startswith("gate: perplexity is ") and "expected at most 0.5" in str(cause)
        for cause in causes
    )
