"""The best recipe of a search is healed at its end: how it is remembered, told and resumed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from gptailor_merge.cli.app import app
from gptailor_merge.errors import ConfigError
from gptailor_merge.healing.facts import FACTS, facts_on
from gptailor_merge.healing.finalists import check_healing
from gptailor_merge.objectives.tasks.harness import task_manager
from gptailor_merge.recipe.edits import with_whole_paths
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.page import write_report
from gptailor_merge.runs.journal import Journal
from gptailor_merge.scoring.live_models import open_recipe
from gptailor_merge.scoring.task_scores import LmEvalSettings, run_tasks
from gptailor_merge.search.candidates import Status
from gptailor_merge.testing.three_models import assert_three_equal
from tests.conftest import DEMO, write_tasks
from tests.repair.test_finalists import CPU, config, run

STORIES = DEMO / "tasks" / "test" / "stories.jsonl"
SEARCH = {"budget": 8, "population": 4, "warm_start": []}


@pytest.fixture
def texts(tmp_path: Path) -> str:
    file = tmp_path / "train.jsonl"
    words = [
        "the",
        "fox",
        "and",
        "a",
        "hen",
        "went",
        "over",
        "some",
        "hills",
        "to",
        "see",
        "what",
        "was",
        "there",
        "for",
        "them",
    ]
    lines = [" ".join(words[(n * k) % len(words)] for k in range(1, 40)) for n in range(1, 40)]
    file.write_text("".join(json.dumps({"text": f"{n} {line}."}) + "\n" for n, line in enumerate(lines)))
    return str(file)


def heal_of(texts: str, **changes: Any) -> dict[str, Any]:
    standard = {"tokens": 1024, "data": {"stories": texts}, "lora": 4, "sequence_length": 32, "rate": 0.004}
    return {**standard, **changes}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a task whose answer is the next word of a story."""
    written = write_tasks(tmp_path, monkeypatch)
    rows = [json.loads(line) for line in STORIES.read_text().splitlines()]
    words = [f" {row['options'][row['label']].split()[0]}" for row in rows]
    items = [{"question": row["context"], "options": [word]} for row, word in zip(rows, words, strict=True)]
    (written / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    task = written / "generation.yaml"
    document = yaml.safe_load(task.read_text())
    document["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 1}
    task.write_text(yaml.safe_dump(document))
    return written


def test_the_best_is_healed_and_a_killed_run_ends_alike(texts: str, tasks: Path, tmp_path: Path) -> None:
    generate = {"generate": ["tiny_generation"], "limit": 60, "include_path": str(tasks)}
    heal = heal_of(texts, tokens=9216, finalists=2, short=1024, **generate)
    settings = config(tmp_path, held_out=True, repair={"finalists": 0}, heal=heal, search=SEARCH)
    told: list[str] = []
    undisturbed, summary = run(settings, tmp_path, on_step=told.append)
    with Journal(undisturbed.journal) as journal:
        healings, best = journal.healings(), journal.best()
        spent = [*journal.candidates(), *healings.values()]
    assert [key.partition("-")[2] for key in healings] == ["short", "short", ""]
    assert "healing recipe 2 of 2 on few tokens" in told
    short, whole = list(healings.values())[:2], list(healings.values())[2]
    kept = next(candidate.plan.kept for candidate in short if candidate.loss == min(c.loss for c in short))
    assert whole.plan.kept == kept
    helped = [candidate for candidate in healings.values() if candidate.loss is not None]
    assert summary.counts.healed == len({candidate.number for candidate in helped})
    assert summary.counts.tokens == sum(candidate.tokens for candidate in spent)
    assert [row.stage for row in summary.stages[0].rows][-1] == "healed"
    assert best is not None
    assert (best.status, best.digest) == (Status.HEALED, summary.digest)
    recipe = with_whole_paths(Recipe.load(undisturbed.best), undisturbed.path)
    facts = facts_on(recipe, undisturbed.path)
    assert facts is not None
    assert (facts.rank, list(facts.texts)) == (4, ["stories"])
    assert str(tmp_path) not in (undisturbed.path / FACTS).read_text()
    parameters = recipe.parameters.model_copy(update={"adapter": None, "adapter_digest": None})
    without = recipe.model_copy(update={"parameters": parameters})
    settled = LmEvalSettings(("tiny_generation",), tasks, limit=60)
    manager = task_manager(settled.tasks, tasks)
    shares = [
        run_tasks(open_recipe(model, CPU), settled, manager)["tiny_generation"]["exact_match"].value
        for model in (without, recipe)
    ]
    assert facts.generation == {"tiny_generation": tuple(shares)}
    assert shares[0] != shares[1]
    shown = CliRunner().invoke(app, ["show", str(undisturbed.path)]).output
    assert f" {summary.counts.healed} healed, " in shown
    assert re.search(r"\n\W*healed +[\d.]+ ", shown)
    page = write_report(undisturbed).read_text(encoding="utf-8")
    assert facts.sentence() in page
    assert "outcome-healed" in page
    assert len(list(undisturbed.repairs.rglob("adapter_model.safetensors"))) == 1
    assert_three_equal(recipe, tmp_path / "model")
    killed = tmp_path / "killed"
    killed.mkdir()

    def kill(step: str) -> None:
        if step == "healing the best recipe":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, killed, on_step=kill)
    resumed: list[str] = []
    _, again = run(settings, killed, resume=True, on_step=resumed.append)
    assert [step for step in resumed if step.startswith("healing, step")]
    assert (again.digest, again.loss, again.held_out) == (summary.digest, summary.loss, summary.held_out)
    assert [replace(row, seconds=0) for row in again.stages[0].rows] == [
        replace(row, seconds=0) for row in summary.stages[0].rows
    ]


def test_texts_that_the_search_scores_are_refused_before_it_begins(tmp_path: Path) -> None:
    heal = heal_of(str(DEMO / "calibration" / "stories.jsonl"))
    settings = config(tmp_path, repair={"finalists": 0}, heal=heal, search=SEARCH)
    told: list[str] = []
    with pytest.raises(ConfigError, match="documents are those that the run is calibrated on"):
        run(settings, tmp_path, on_step=told.append)
    assert "searching" not in told


def test_tasks_without_generated_answers_are_refused_before_it_begins(
    texts: str, tasks: Path, tmp_path: Path
) -> None:
    heal = heal_of(texts, generate=["tiny_choice"], include_path=str(tasks))
    settings = config(tmp_path, repair={"finalists": 0}, heal=heal, search=SEARCH)
    message = "heal.generate: expected tasks with generated answers and exact_match, found 'tiny_choice'"
    with pytest.raises(ConfigError, match=message):
        run(settings, tmp_path)


def test_another_gpu_is_refused_before_it_begins(texts: str, tmp_path: Path) -> None:
    settings = config(tmp_path, repair={"finalists": 0}, heal=heal_of(texts), search=SEARCH)
    workplace: Any = SimpleNamespace(config=settings, device=torch.device("cuda:1"))
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=1, found cuda:1"):
        check_healing(workplace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, r"heal.data: expected texts to train on, found none"),
        ({"short": 512}, r"heal.short: several finalists are healed on few tokens first, .* found 1 and 512"),
        ({"finalists": 2}, r"heal.short: .* found 2 and 0"),
        ({"data": {"stories": "none.jsonl"}}, r"heal.data.stories: no such file"),
        ({"include_path": "none"}, r"heal.include_path: no such directory, found 'none'"),
    ],
)
def test_what_is_wrong_with_the_section_is_a_sentence(
    changes: dict[str, Any], message: str, texts: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, repair={"finalists": 0}, heal=heal_of(texts, **changes), search=SEARCH)
