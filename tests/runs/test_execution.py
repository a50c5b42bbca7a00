"""A run that has everything at once: tasks, several sizes, gates, a held-out set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, FamilyError, SearchError
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.view import view
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
            "repair": {"texts": "scored"},
            "tune": {"steps": 0},
            "writes": {"tokens": 0},
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


def with_variant(family: dict[str, str], texts: dict[str, str], variant: str, teacher: str) -> SearchConfig:
    """A short search over the base and one variant, by KL to a teacher."""
    kl = {"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16, "teacher": teacher}
    document = {
        "family": {"base": family["base"], "variants": {"other": variant}},
        "target": {"layers": 4},
        "tune": {"steps": 0},
        "writes": {"tokens": 0},
        "objectives": [kl],
        "search": {"budget": 2, "population": 2, "warm_start": []},
        "repair": {"finalists": 0},
    }
    return SearchConfig.model_validate(document)


def test_differences_between_members_stand_beside_every_score(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    """The search says them before it begins; summary, page and card read them from the journal."""
    variant = copied(family["math"], tmp_path / "variant", "config.json", '"rms_norm_eps": 1e-06', 0.25)
    steps: list[str] = []
    done, summary = run(with_variant(family, texts, variant, "other"), tmp_path / "run", on_step=steps.append)
    (sentence,) = summary.warnings
    assert sentence.startswith("other was trained with rms_norm_eps 0.25 instead of 1e-06; the result has")
    assert f"warning: {sentence}" in steps[: steps.index("searching")]
    assert view(done.record()).warnings == (sentence,)


def copied(source: str, directory: Path, file: str, old: str, new: object) -> str:
    """A copy of a model in which a value is replaced in one of its documents."""
    shutil.copytree(source, directory)
    text = (directory / file).read_text()
    assert old in text
    key = old.split(":")[0]
    (directory / file).write_text(text.replace(old, f"{key}: {new}"))
    return str(directory)


def test_a_teacher_with_other_tokens_is_named(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    """Tokens that no text holds make no difference to a teacher."""
    other = copied(family["math"], tmp_path / "other", "tokenizer.json", '"A": 33', 34)
    other = copied(other, tmp_path / "both", "tokenizer.json", '"B": 34', 33)
    with pytest.raises(
        FamilyError, match="other cannot be compared with on these texts, which hold 'A'; it has"
    ):
        run(with_variant(family, texts, other, "other"), tmp_path / "run")
    rare = copied(family["math"], tmp_path / "rare", "tokenizer.json", '"^": 62', 63)
    rare = copied(rare, tmp_path / "rarer", "tokenizer.json", '"_": 63', 62)
    _, summary = run(with_variant(family, texts, rare, "other"), tmp_path / "rare_run")
    assert "2 other tokens behind the ids (id 62 is '_' and not '^'" in summary.warnings[0]


def test_a_member_with_nan_is_found_before_anything_is_scored(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(family["math"], broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FamilyError, match=r"other: model.norm.weight in broken/model.safetensors holds NaN"):
        run(with_variant(family, texts, str(broken), "base"), tmp_path / "run")
