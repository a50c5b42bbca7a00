"""Lists the numbers behind the figures of a run's page as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptailor_merge.objectives.scores import TOTAL, Score
from gptailor_merge.report.formatting import number, plain, signed
from gptailor_merge.report.sections import panels
from gptailor_merge.report.view import HeldOut, RunView
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.stages import StageTable


@dataclass(frozen=True)
class NumberCell:
    """A cell of a table.

    Attributes:
        beside: smaller text behind the number, such as its standard error.
    """

    text: str
    beside: str = ""


@dataclass(frozen=True)
class NumberRow:
    """A row of a table.

    Attributes:
        total: whether the row sums up the others.
    """

    cells: tuple[NumberCell, ...]
    total: bool = False


@dataclass(frozen=True)
class NumberTable:
    """The numbers behind a figure.

    Attributes:
        found: the position of the column of the found recipe; -1 where there is none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[NumberRow, ...]
    found: int = -1


def number_tables(view: RunView) -> Mapping[str, Sequence[NumberTable]]:
    """Returns the tables of a run, by the key of the chart or section that they stand below."""
    held_out = {f"held-out-{n}": [_held_out_table(rows)] for n, (_, rows) in enumerate(panels(view))}
    gaps = [*map(_stage_table, view.stages), *([_gap_table(view)] if view.gaps else [])]
    front = [_front_table(view)] if view.front else []
    return {**held_out, "held-out": gaps, "front": front}


def _held_out_table(rows: Sequence[HeldOut]) -> NumberTable:
    models = list(rows[0].scores)
    return NumberTable(
        "The numbers, ± standard errors",
        ("", *models, "mean over"),
        tuple(
            NumberRow(
                (
                    NumberCell("all together" if row.name == TOTAL else row.name),
                    *(_score_cell(row.scores[model]) for model in models),
                    NumberCell(f"{row.scores[FOUND].count:,.0f}"),
                ),
                total=row.name == TOTAL,
            )
            for row in rows
        ),
        1 + models.index(FOUND),
    )


def _score_cell(score: Score) -> NumberCell:
    error = score.natural_error
    return NumberCell(number(score.natural), "" if error is None else f"± {number(error)}")


def _stage_table(stages: StageTable) -> NumberTable:
    return NumberTable(
        f"Held-out {plain(stages.objective)} by stage; found is by the search alone",
        ("", *stages.columns, "tokens of the stage", "seconds"),
        tuple(
            NumberRow(
                (
                    NumberCell(row.stage),
                    *map(_score_cell, stages.scores(row)),
                    NumberCell(f"{row.tokens:,}"),
                    NumberCell(f"{row.seconds:,.0f}"),
                )
            )
            for row in stages.rows
        ),
    )


def _gap_table(view: RunView) -> NumberTable:
    rows = (
        (
            gap.objective,
            ", ".join(gap.sets),
            number(gap.searched),
            number(gap.held_out),
            signed(gap.difference, ".3f"),
            f"{signed(gap.low, '.3f')} to {signed(gap.high, '.3f')}",
        )
        for gap in view.gaps
    )
    return NumberTable(
        "Search score minus held-out score",
        ("", "on", "search", "held out", "gap", "95 % interval"),
        tuple(NumberRow(tuple(map(NumberCell, row))) for row in rows),
    )


def _front_table(view: RunView) -> NumberTable:
    return NumberTable(
        "The recipes of the front",
        ("", "layers", *view.axes),
        tuple(
            NumberRow(
                (
                    NumberCell(point.name, "taken" if point.name == view.picked else ""),
                    NumberCell(str(point.layers)),
                    *(NumberCell(number(point.scores[name])) for name in view.axes),
                )
            )
            for point in view.front
        ),
    )
