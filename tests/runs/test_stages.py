"""What each stage of a run came to is told alike by summary, command, page and card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.cli import printing
from gptailor_merge.errors import SearchError
from gptailor_merge.hub import card_tables
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.report.tables import number_tables
from gptailor_merge.report.view import view
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.search.candidates import Candidate, Status
from tests.report.runs import candidate, perplexities, write


def held_out(mean: float, outside: float) -> Scores:
    """Scores in nats on a set that is searched on, and on one that is not."""
    return {"nats": {"a": Score(mean, 50, "nats"), "b": Score(outside, 150, "nats")}}


def refined_run(directory: Path, stages: tuple[Scores, ...], **config: Any) -> Run:
    """A run whose best recipe was found, repaired and tuned."""
    found, worse = candidate(0, "scored", 0.5, 0.2, tokens=100), candidate(1, "scored", 0.9, 0.3, tokens=100)
    repaired = candidate(0, Status.REPAIRED, 0.4, 0.4, tokens=30, seconds=2.0)
    tuned = candidate(1, Status.TUNED, 0.3, 0.5, tokens=600, seconds=8.0)
    recipes = (found, repaired, tuned)[: len(stages)]
    scores = {recipe.digest: scored for recipe, scored in zip(recipes, stages, strict=True)}
    models = perplexities(base=2.0, math=2.0, code=2.0, found=3.0)
    run = write(directory, [found, worse], meta={"stages": scores}, held_out=models, **config)
    with Journal(run.journal) as journal:
        for recipe in recipes[1:]:
            record = journal.record_repair if recipe.status == Status.REPAIRED else journal.record_tuning
            record(found.digest, recipe)
        best = journal.best()
    assert best is not None
    run.best.write_text(best.recipe)
    return run


def test_every_stage_is_a_row_wherever_a_run_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = refined_run(tmp_path / "run", (held_out(3.0, 4.0), held_out(2.5, 4.1), held_out(2.25, 4.6)))
    summary = run.summary()
    assert summary.to_json()["stages"] == [
        {
            "objective": "nats",
            "calibrated_on": ["a"],
            "rows": [
                {"stage": name, "calibrated": a, "outside": {"b": b}, "tokens": tokens, "seconds": seconds}
                for name, a, b, tokens, seconds in (
                    ("found", 3.0, 4.0, 200, 1.0),
                    ("repaired", 2.5, 4.1, 30, 2.0),
                    ("tuned", 2.25, 4.6, 600, 8.0),
                )
            ],
        }
    ]
    sentence = (
        "Tuning improved the held-out nats on what was calibrated on (2.5 to 2.25) and made it worse by more "
        "on b, which was not (4.1 to 4.6)"
    )
    assert summary.warnings == (sentence,)
    shown = view(run.record())
    assert shown.warnings == (sentence,)
    (table,) = number_tables(shown)["held-out"]
    assert table.columns == ("", "mean of a", "b (not calibrated on)", "tokens of the stage", "seconds")
    assert [[cell.text for cell in row.cells] for row in table.rows][1:] == [
        ["repaired", "2.500", "4.100", "30", "2"],
        ["tuned", "2.250", "4.600", "600", "8"],
    ]
    ((name, markdown),) = card_tables.stage_tables(summary.stages)
    assert name == "nats"
    assert markdown.splitlines()[-1] == "| tuned | 2.2500 | 4.6000 | 600 | 8 |"
    printing.summary(summary)
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if line.split()[:1] == ["tuned"]] == [
        ["tuned", "2.2500", "4.6000", "600", "8"]
    ]


@pytest.mark.parametrize(
    ("stages", "config", "tables"),
    [
        ((), {}, 0),  # an early version measured what it chose, and no stage
        ((held_out(3.0, 4.0),), {}, 1),
        ((perplexities(found=3.0)["found"],), {"repair": {"data": {"a": "a.jsonl", "b": "b.jsonl"}}}, 0),
        (({"parameters": {"all": Score(9.0, 1, "count")}},), {}, 0),
    ],
)
def test_there_is_a_table_where_there_is_something_to_compare(
    stages: tuple[Scores, ...], config: dict[str, Any], tables: int, tmp_path: Path
) -> None:
    summary = refined_run(tmp_path / "run", stages, **config).summary()
    assert len(summary.stages) == tables
    assert ("stages" in summary.to_json()) == bool(tables)
    assert summary.warnings == ()


def test_a_front_has_the_stages_of_the_recipe_that_it_picks(tmp_path: Path) -> None:
    """A stage that has no recipe of the size that is picked is left out."""

    def scored(number: int, status: str, kl: float, weight: float) -> Candidate:
        scores = {"kl": {"a": Score(kl, 100)}, "parameters": {"all": Score(5.0, 1, "count")}}
        return candidate(number, status, kl, weight, scores=scores)

    found, repaired = scored(0, "scored", 0.5, 0.2), scored(0, Status.REPAIRED, 0.4, 0.3)
    run = write(
        tmp_path / "run",
        [found],
        meta={
            "axes": ("kl", "parameters"),
            "stages": {found.digest: held_out(3.0, 4.0), repaired.digest: held_out(2.0, 4.5)},
        },
        objectives=[{"kind": "kl", "data": {"a": "a.jsonl"}}, {"kind": "parameters"}],
        search={"budget": 1, "population": 2, "pick": "best:kl"},
    )
    with Journal(run.journal) as journal:
        journal.record_repair(found.digest, repaired)
    (table,) = run.record().stages
    assert [(row.stage, row.outside["b"].mean) for row in table.rows] == [("found", 4.0), ("repaired", 4.5)]
    run.config.write_text(run.config.read_text().replace("best:kl", "layers=9"))
    run.best.write_text(repaired.recipe)
    assert run.record().stages == ()


def test_scores_over_nothing_are_no_traceback(tmp_path: Path) -> None:
    run = refined_run(tmp_path / "run", ({"nats": {"a": Score(3.0, 0), "b": Score(1.0, 8)}},))
    with pytest.raises(SearchError, match=r"it holds what no search writes \(a score over nothing\)"):
        run.record()
