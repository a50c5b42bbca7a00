"""The best recipes of a search are tuned at its end: which, how they are remembered, and what is left of them."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptailor_merge.composing.editing import GAINS_FILE
from gptailor_merge.errors import ConfigError, DataError, ScoringError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.recipe.edits import edit_files, gains_files, with_whole_paths
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.journal import Journal
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.testing.three_models import assert_three_equal
from gptailor_merge.tuning import checkpoint, finalists
from gptailor_merge.tuning.finalists import STATE_FILE, to_tune
from tests.repair.test_finalists import config, run
from tests.space.test_space import space as family_space

TUNE = {"finalists": 2, "steps": 2, "tokens": 512}


def test_the_best_are_tuned_and_a_killed_run_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"budget": 8, "population": 4, "warm_start": []}
    settings = config(tmp_path, held_out=True, repair={"finalists": 1}, tune=TUNE, search=search)
    told: list[str] = []
    undisturbed, summary = run(settings, tmp_path, on_step=told.append)
    with Journal(undisturbed.journal) as journal:
        tunings, best = journal.tunings(), journal.best()
        chosen = to_tune(journal, (), 2)
        repaired = min(journal.repairs().values(), key=lambda candidate: candidate.loss or math.inf)
        spent = [*journal.candidates(), *journal.repairs().values(), *tunings.values()]
    assert [candidate.digest for candidate in chosen] == list(tunings)
    assert len({candidate.plan.kept for candidate in chosen}) == 2
    assert best is not None
    assert (best.status, best.digest) == (Status.TUNED, summary.digest)
    assert best.loss is not None
    assert all(candidate.loss is None or best.loss < candidate.loss for candidate in chosen)
    assert (summary.counts.tuned, summary.counts.tokens) == (2, sum(candidate.tokens for candidate in spent))
    (table,) = summary.stages
    assert [row.stage for row in table.rows] == ["found", "repaired", "tuned"]
    assert [row.tokens for row in table.rows][2] == sum(tuned.tokens for tuned in tunings.values())
    assert sum(row.tokens for row in table.rows) == summary.counts.tokens
    assert table.rows[2].calibrated is not None
    assert table.rows[2].calibrated.natural == summary.held_out["found"]["perplexity"]["total"]
    assert len({row.calibrated for row in table.rows}) == 3
    recipe = Recipe.load(undisturbed.best)
    assert {Path(file).parts[0] for file in edit_files(recipe)} == {"repair"}
    # The best of each stage keeps its directory.
    files = {undisturbed.path / file for each in (recipe, repaired.parsed) for file in edit_files(each)}
    left = {*undisturbed.repairs.rglob("*.safetensors")}
    assert left >= files
    assert {file.parent for file in left} == {file.parent for file in files}
    assert_three_equal(with_whole_paths(recipe, undisturbed.path), tmp_path / "model")
    # Killed while the first was tuned; and before the second was, when both had lost what was fitted.
    killed = tmp_path / "killed"
    killed.mkdir()

    def kill(step: str) -> None:
        if step.startswith("tuning, step 2 of 2"):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(settings, killed, on_step=kill)
    (state,) = (killed / "run").rglob(STATE_FILE)
    resumed: list[str] = []
    begun, _ = run(settings, killed, resume=True, on_step=resumed.append)
    assert not state.exists()
    steps = [step[: len("tuning, step 1 of 2")] for step in resumed if step.startswith("tuning, step")]
    assert steps == ["tuning, step 2 of 2", "tuning, step 1 of 2", "tuning, step 2 of 2"]
    with Journal(begun.journal) as journal:
        journal._db.execute("DELETE FROM tunings WHERE original = ?", (next(iter(tunings)),))
    for _ in range(2):
        _, again = run(settings, killed, resume=True)
        assert (again.digest, again.loss, again.held_out) == (summary.digest, summary.loss, summary.held_out)
        assert [replace(row, seconds=0) for row in again.stages[0].rows] == [
            replace(row, seconds=0) for row in table.rows
        ]
        with Journal(begun.journal) as journal:
            assert {o: t.digest for o, t in journal.tunings().items()} == {
                o: t.digest for o, t in tunings.items()
            }
        shutil.rmtree(begun.repairs)
    assert [step for step in told if step.startswith("tuning recipe")] == [
        "tuning recipe 1 of 2",
        "tuning recipe 2 of 2",
    ]
    assert gains_files(recipe)[0].endswith(GAINS_FILE)


def test_an_objective_without_a_gradient_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Once upon a time."}')
    objectives = [
        {"kind": kind, "data": {"a": str(tmp_path / "a.jsonl")}, "weight": 1.0}
        for kind in ("perplexity", "repetition")
    ]
    with pytest.raises(
        ConfigError, match=r"tune\.finalists: .* repetition as it is here has none; give it no weight"
    ):
        config(tmp_path, objectives=objectives, tune=TUNE)


@pytest.mark.parametrize("error", [DataError("too few texts"), MemoryError()])
def test_what_cannot_be_tuned_ends_the_run_only_where_tuning_was_asked_for(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(workplace: Any) -> None:
        raise error

    monkeypatch.setattr(finalists, "_tuner", fails)
    scored = family_space()
    found = scored.select(0, {1, 2, 3})
    recipe = scored.recipe(found).to_yaml()
    best = Candidate(0, found.digest, recipe, Status.SCORED, 1.0, {"kl": {"a": Score(1.0, 1)}}, "f")
    log = SimpleNamespace(finished=lambda: [best], best=lambda: best, tunings=dict)
    judge = SimpleNamespace(settings=SimpleNamespace(axes=()))
    told: list[str] = []

    def tuned(**section: int) -> None:
        tune = {"steps": 1, **section}
        workplace = SimpleNamespace(config=config(tmp_path, tune=tune), progress=told.append)
        fitter: Any = SimpleNamespace()
        finalists.tune_finalists(workplace, fitter, judge, log, tmp_path)  # type: ignore[arg-type]

    tuned()
    (note,) = told
    assert note.startswith("note: no recipe is tuned: t")
    with pytest.raises((DataError, ScoringError), match=r"too few texts|tuning ran out of memory"):
        tuned(finalists=1)
