"""Runs of earlier versions can be opened, shown, reported and published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gptailor_merge import __version__
from gptailor_merge.hub.release import release_of
from gptailor_merge.report.page import write_report
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.search.candidates import Status

DATA = Path(__file__).parent / "data" / "0.1.0"
WRITTEN_IN = "/tmp/gptailor-0.1.0"


@pytest.fixture(params=["search", "front"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A copy of a run; its family and its data are gone."""
    return Run.open(shutil.copytree(DATA / request.param, tmp_path / request.param))


def test_it_is_shown_as_its_version_showed_it(run: Run) -> None:
    shown = json.dumps(run.summary().to_json(), indent=1) + "\n"
    expected = (run.path / "shown.json").read_text()
    assert shown == expected.replace(f"{WRITTEN_IN}/{run.path.name}", str(run.path))


def test_everything_in_it_is_read(run: Run) -> None:
    record = run.record()
    assert record.done
    assert [candidate.number for candidate in record.candidates] == list(range(8))
    assert set(record.models) == {"base", "math", "code"}
    assert set(record.held_out) >= {"base", "math", "code", "found"}
    assert record.versions["gptailor-merge"] == "0.1.0"
    assert record.best is not None
    assert record.best.recipe == run.best.read_text()
    if run.path.name == "front":
        assert record.axes == ("kl", "perplexity", "parameters")
        assert [f"{point.name}.yml" for point in record.front] == sorted(f.name for f in run.pareto.iterdir())
        assert {digest for digest, gaps in record.gaps.items() if gaps} == {
            point.candidate.digest for point in record.front
        }
    else:
        statuses = {candidate.status for candidate in record.candidates}
        assert statuses == {Status.SCORED, Status.DROPPED, Status.GATED, Status.DUPLICATE}
        assert record.objectives == ("kl",)
        assert [repair.cause for repair in record.repairs if repair.loss is None] == ["no map helps"] * 2
        assert record.counts.repaired == 1


def test_another_recipe_of_the_front_can_be_picked(tmp_path: Path) -> None:
    run = Run(shutil.copytree(DATA / "front", tmp_path / "front"))
    largest = run.summary("layers=4")
    assert largest.recipe in run.pareto.iterdir()
    assert largest.sizes["found"].layers == 4
    assert largest.held_out["found"] == largest.held_out[largest.recipe.stem]


def test_its_page_is_written(run: Run) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert f"Found by gptailor-evolve · recipe {run.summary().digest}" in text
    assert WRITTEN_IN not in text


def test_it_is_published_as_its_version_published_it(run: Run) -> None:
    record = release_of(run.record(), "apache-2.0").record_text()
    expected = (run.path / "gptailor_run.json").read_text(encoding="utf-8")
    assert record == expected.replace('"gptailor-merge 0.1.0"', f'"gptailor-merge {__version__}"')


def test_its_journal_is_written_as_before(run: Run) -> None:
    """Writing back what was read changes no key of the metadata, and no text."""

    def rows() -> dict[str, str]:
        with Journal(run.journal) as journal:
            return dict(journal._db.execute("SELECT key, value FROM meta"))

    before = rows()
    with Journal(run.journal) as journal:
        journal.describe(journal.metadata())
    assert rows() == before
