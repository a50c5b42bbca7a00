"""The best recipes of a search are repaired: which, how they are remembered, and what is left of them."""

from __future__ import annotations

import math
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.host.names_and_commands import RECIPE
from gptailor_merge.objectives.scores import Score
from gptailor_merge.planning.check import check
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.edits import map_files, with_whole_paths
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.finalists import best_refined, finalists
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.summary import Summary
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.testing.three_models import assert_three_equal
from tests.conftest import DEMO
from tests.report.runs import candidate

CPU = torch.device("cpu")


def config(directory: Path, *, held_out: bool = False, **changes: Any) -> SearchConfig:
    """A small search of the built-in family, whose cuts are worth repairing."""
    document = yaml.safe_load((DEMO / "search.yml").read_text())
    family = document["family"]
    family["base"] = str(DEMO / family["base"])
    family["variants"] = {"stories": str(DEMO / family["variants"]["stories"])}
    (objective,) = document["objectives"]
    objective["data"] = {n: str(DEMO / objective["data"][n]) for n in ("stories", "maths")}
    objective |= {"tokens": 1024, "sequence_length": 64, "teacher": {"stories": "stories"}}
    for measured in document["held_out"]:
        measured |= {"data": {n: str(DEMO / measured["data"][n]) for n in objective["data"]}, "tokens": 1024}
    document["search"] = {"budget": 24, "population": 8, "warm_start": ["shortgpt"]}
    if not held_out:
        del document["held_out"]
    document["tune"] = {"steps": 0}
    document["writes"] = {"tokens": 0}
    repair = {"tokens": 1024, **changes.pop("repair", {})}
    file = directory / "search.yml"
    file.write_text(yaml.safe_dump({**document, **changes, "repair": repair}))
    return SearchConfig.load(file)


def run(made: SearchConfig, directory: Path, **options: Any) -> tuple[Run, Summary]:
    found = Run(directory / "run")
    execute(made, found, CPU, **options)
    return found, found.summary()


def test_finalists_are_repaired_and_the_best_of_them_is_found(tmp_path: Path) -> None:
    made, summary = run(config(tmp_path, held_out=True, repair={"finalists": 3}), tmp_path)
    with Journal(made.journal) as journal:
        candidates = {
            c.digest: c for c in journal.candidates() if c.status in (Status.SCORED, Status.DROPPED)
        }
        repairs = journal.repairs()
        best, counts = journal.best(), journal.counts()
        spent = sum(c.tokens for c in (*journal.candidates(), *repairs.values()))
        assert [c.digest for c in finalists(journal, (), 3)] == list(repairs)[:3]
    assert best is not None
    assert best.status == Status.REPAIRED
    assert (summary.digest, summary.loss) == (best.digest, best.loss)
    originals = [candidates[digest] for digest in list(repairs)[:3]]
    # The best of them is repaired everywhere, too.
    *at_cuts, everywhere = repairs.values()
    first_best = min(at_cuts, key=lambda c: math.inf if c.loss is None else c.loss)
    assert list(repairs)[3] == first_best.digest
    assert everywhere.plan.kept == first_best.plan.kept
    assert len(everywhere.plan.repaired) > len(first_best.plan.repaired)
    assert everywhere.digest == best.digest
    # One for each choice of layers, the best choices first.
    kept = [plan(c.parsed).kept for c in originals]
    assert len({*kept}) == len(kept) == 3
    losses = [c.loss for c in originals]
    assert losses == sorted(losses, key=lambda loss: loss or 0.0)
    first = min(c.loss for c in candidates.values() if c.loss is not None and c.status == Status.SCORED)
    assert best.loss is not None
    assert best.loss < first - 0.05
    assert (counts.repaired, counts.tokens) == (
        len({c.number for c in repairs.values() if c.loss is not None}),
        spent,
    )
    recipe = Recipe.load(made.best)
    # Maps are named from the run, whose recipes are in it and one level deeper.
    files = map_files(recipe)
    assert files
    assert {Path(file).parts[0] for file in files} == {"repair"}
    for place in (made.path, made.pareto, made.model):
        assert map_files(with_whole_paths(recipe, place)) == [str(made.path / file) for file in files]
    # The maps of the others are gone.
    assert {*made.repairs.rglob("*.safetensors")} >= {made.path / file for file in files}
    assert len(list(made.repairs.iterdir())) == 1
    assert summary.held_out[FOUND]["perplexity"]["total"] > 0
    moved = made.path.rename(tmp_path / "moved")
    assert check(recipe, file=moved / "best.yml").digest == summary.digest
    assert Run(moved).record().best == best
    assert_three_equal(with_whole_paths(recipe, moved), tmp_path / "out")
    # A model elsewhere names the maps by whole paths, so that its recipe holds from there.
    materialize(recipe, tmp_path / "elsewhere" / "model", file=moved / "best.yml")
    written = tmp_path / "elsewhere" / "model" / RECIPE
    assert check(Recipe.load(written), file=written).digest == summary.digest


def test_of_a_front_all_that_are_still_on_it_are_repaired_everywhere() -> None:
    """Three finalists were repaired at their cuts; the second repair is worse in both than the third."""

    def at(number: int, status: str, kl: float, size: float) -> Candidate:
        scores = {"kl": {"a": Score(kl, 1)}, "parameters": {"all": Score(size, 1, "count")}}
        return candidate(number, status, kl, number / 10 + kl / 100, scores=scores)

    class Log:
        def finished(self) -> Iterator[Candidate]:
            yield from (at(1, "scored", 5.0, 1.0), at(2, "scored", 4.0, 2.0), at(9, "repaired", 0.1, 0.1))

        def best(self) -> None:
            raise AssertionError("a front has no best")

    refined = [at(1, "repaired", 4.5, 1.0), at(2, "repaired", 3.5, 2.0), at(3, "repaired", 3.0, 1.5)]
    digests = [each.digest for each in refined]
    assert best_refined(refined, Log(), ("kl", "parameters")) == [digests[2], digests[0]]
    assert best_refined(refined, Log(), ()) == [digests[2]]
    assert best_refined([], Log(), ()) == []


def test_what_is_repaired_is_not_repaired_again_unless_its_maps_are_lost(tmp_path: Path) -> None:
    settings = config(tmp_path, repair={"finalists": 2})
    made, summary = run(settings, tmp_path)
    # A copy goes on with its own maps, and leaves those of the original and of the user alone.
    shutil.copytree(made.path, tmp_path / "original")
    (made.repairs / "mine").mkdir()
    (made.repairs / "mine" / "repair-1.safetensors").write_text("mine")
    told: list[str] = []
    again = run(settings, tmp_path, resume=True, on_step=told.append)[1]
    assert again == summary
    kept = {str(file.relative_to(made.path)) for file in made.repairs.rglob("*.safetensors")}
    originals = {
        str(f.relative_to(tmp_path / "original")) for f in (tmp_path / "original").rglob("*.safetensors")
    }
    assert kept == {*originals, "repair/mine/repair-1.safetensors"}
    assert not [step for step in told if step.startswith("repairing recipe")]
    shutil.rmtree(made.repairs)
    lost = run(settings, tmp_path, resume=True, on_step=told.append)[1]
    assert len([step for step in told if step.startswith("repairing recipe")]) == 1
    assert (lost.digest, lost.loss) == (summary.digest, summary.loss)
    assert all((made.path / file).is_file() for file in map_files(Recipe.load(made.best)))
    # A run that was killed after one repair comes to the same.
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "original", killed / "run")
    with closing(sqlite3.connect(killed / "run" / "journal.db")) as journal, journal:
        journal.execute("DELETE FROM repairs WHERE rowid > 1")
    shutil.rmtree(killed / "run" / "repair")
    assert repairs_of(run(settings, killed, resume=True)[0]) == repairs_of(made)


def repairs_of(made: Run) -> dict[str, tuple[Any, ...]]:
    with Journal(made.journal) as journal:
        return {key: (c.digest, c.loss, c.recipe, c.tokens, c.cause) for key, c in journal.repairs().items()}


def test_a_run_of_an_earlier_version_is_repaired_as_it_was_begun(tmp_path: Path) -> None:
    """Its config has no `texts`: maps were fitted at the cuts, to the sequences that objectives score."""
    recorded = {"finalists": 2, "everywhere": False, "tokens": 32768, "sequence_length": 512}
    made, summary = run(config(tmp_path, repair={**recorded, "texts": "scored"}), tmp_path)
    assert yaml.safe_load(made.config.read_text())["repair"] == recorded
    with Journal(made.journal) as journal:
        assert len(journal.repairs()) == 2
        inputs = journal.metadata().inputs
    assert inputs is not None
    for name in ("stories", "maths"):
        assert inputs[f"repair: {name}"] == inputs[f"objectives: kl on {name}"]
    search = yaml.safe_load((tmp_path / "search.yml").read_text())
    (tmp_path / "search.yml").write_text(yaml.safe_dump({**search, "repair": {"finalists": 2}}))
    assert run(SearchConfig.load(tmp_path / "search.yml"), tmp_path, resume=True)[1] == summary
    with pytest.raises(ConfigError, match="begun with another config; repair differ"):
        run(config(tmp_path, repair={"finalists": 2, "tokens": 4096}), tmp_path, resume=True)


@pytest.mark.parametrize("objectives", ["none repaired", "too few texts", "no texts"])
def test_without_repairs_the_search_has_the_last_word(tmp_path: Path, objectives: str) -> None:
    repair = {"none repaired": {"finalists": 0}, "too few texts": {"tokens": 256}}.get(objectives, {})
    settings = config(tmp_path, repair=repair)
    if objectives == "no texts":
        document = yaml.safe_load((tmp_path / "search.yml").read_text())
        task = {"kind": "task", "tasks": ["gptailor_maths"], "include_path": str(DEMO / "tasks"), "limit": 8}
        document["objectives"] = [{**task, "metric": "margin", "split": "validation"}]
        document["search"]["budget"] = 16
        (tmp_path / "search.yml").write_text(yaml.safe_dump(document))
        settings = SearchConfig.load(tmp_path / "search.yml")
    made, summary = run(settings, tmp_path)
    with Journal(made.journal) as journal:
        assert journal.repairs() == {}
    assert not map_files(Recipe.load(made.best))
    assert summary.counts.repaired == 0


def test_a_repaired_recipe_that_breaks_a_bound_is_out(tmp_path: Path) -> None:
    """The gate is on what maps make worse here: how near the stories' own member stays."""
    data = {"maths": str(DEMO / "calibration" / "maths.jsonl")}
    gate = {
        "kind": "perplexity",
        "data": data,
        "tokens": 256,
        "sequence_length": 64,
        "at_least": 62.0,
    }
    settings = config(tmp_path, gates=[gate], repair={"finalists": 2})
    made, summary = run(settings, tmp_path)
    with Journal(made.journal) as journal:
        repairs = list(journal.repairs().values())
    out = [c for c in repairs if c.loss is None]
    assert out
    assert all(c.cause is not None and "expected at least" in c.cause for c in out)
    assert all("gate: perplexity" in c.scores for c in out)
    assert summary.digest not in {c.digest for c in out}


def test_texts_of_its_own_are_checked_and_never_held_out(tmp_path: Path) -> None:
    held_out = {"stories": str(DEMO / "held-out" / "stories.jsonl")}
    settings = config(tmp_path, held_out=True, repair={"data": held_out, "tokens": 1024})
    with pytest.raises(ConfigError, match=r"held_out\[0\]\.data\.stories: .* are also searched on"):
        run(settings, tmp_path)
    few = {"stories": str(DEMO / "calibration" / "stories.jsonl")}
    settings = config(tmp_path, repair={"data": few, "tokens": 256, "sequence_length": 128})
    with pytest.raises(ConfigError, match=r"repair\.data: no file has 4 sequences"):
        run(settings, tmp_path)
    with pytest.raises(ConfigError, match=r"repair\.data\.x: no such file"):
        config(tmp_path, repair={"data": {"x": "nowhere.jsonl"}})
