"""A run's page: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from gptailor_merge.files import write_beside
from gptailor_merge.objectives.scores import TOTAL
from gptailor_merge.report.interactive.charts import figures
from gptailor_merge.report.interactive.layout import FONT
from gptailor_merge.report.palette import DARK, LIGHT
from gptailor_merge.report.sections import (
    duration,
    headline,
    number,
    panels,
    plain,
    sections,
    short,
    signed,
    total,
)
from gptailor_merge.report.view import BASE, HeldOut, RunView, view
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.summary import FOUND

REFRESH = 2000
"""Milliseconds after which a watched page asks for news."""


_TEMPLATES = files("gptailor_merge.report") / "templates"


@dataclass(frozen=True)
class Tile:
    """A number that a reader looks for first."""

    label: str
    value: str
    beside: str


@dataclass(frozen=True)
class Cell:
    """Of a table."""

    text: str
    beside: str = ""


@dataclass(frozen=True)
class Row:
    """Of a table."""

    cells: tuple[Cell, ...]
    total: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers behind a figure.

    Attributes:
        found: the position of the column of what was found; -1 where there is none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    found: int = -1


@dataclass(frozen=True)
class Content:
    """What changes in a page while a run goes on: HTML, and the figures as JSON by theme and chart."""

    title: str
    main: str
    figures: str


def write_report(run: RunDirectory, others: Sequence[RunDirectory] = ()) -> Path:
    """Write RUN/report.html.

    Args:
        others: runs of the same search config by other methods.

    Raises:
        InputError, ConfigError: see run_view.view.
    """
    write_beside(run.report, page(content(view(run, others))))
    return run.report


def content(made: RunView) -> Content:
    """What is shown of a run."""
    main = _template("main.html").render(
        origin=_origin(made),
        headline=f"{headline(made)}.",
        tiles=list(_tiles(made)),
        warnings=made.warnings,
        sections=sections(made),
        tables={**_scores(made), "held-out": list(_gaps(made)), "front": list(_front(made))},
        facts=list(_facts(made)),
        documents=list(_documents(made)),
    )
    themes = {"light": figures(made, LIGHT), "dark": figures(made, DARK)}
    drawn = {
        theme: ",".join(f'"{key}":{figure.to_json()}' for key, figure in some.items())
        for theme, some in themes.items()
    }
    joined = ",".join(f'"{theme}":{{{some}}}' for theme, some in drawn.items())
    # No text in it may end the script element that it stands in.
    return Content(headline(made), main, f"{{{joined}}}".replace("<", "\\u003c"))


def page(shown: Content, *, stamp: str | None = None) -> str:
    """The whole page.

    Args:
        stamp: of a page that asks its server for news: which state it shows.
    """
    written: str = _template("page.html").render(
        title=shown.title,
        main=shown.main,
        figures=shown.figures,
        plotly=get_plotlyjs(),
        font=FONT,
        light=LIGHT.named,
        dark=DARK.named,
        live=stamp is not None,
        stamp=stamp,
        interval=REFRESH,
    )
    return written


@lru_cache
def _template(name: str) -> Any:
    def load(wanted: str) -> str:
        return (_TEMPLATES / wanted).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _origin(made: RunView) -> str:
    what = made.baseline or "gptailor-evolve"
    run = "" if made.digest is None else f" · recipe {made.digest}"
    state = "" if made.done else f" · {made.counts.candidates:,} of {made.budget:,} candidates so far"
    return f"Found by {what}{run}{state}" if made.done else f"{what} is running{run}{state}"


def _tiles(made: RunView) -> Iterator[Tile]:
    if made.places:
        yield Tile("Layers", str(made.kept), f"of {made.depth}")
    if {BASE, FOUND} <= set(made.sizes):
        before, after = made.sizes[BASE].parameters, made.sizes[FOUND].parameters
        yield Tile("Parameters", short(after), f"of {short(before)}, {signed(after / before - 1, '.1%')}")
    scores = total(made)
    if scores is not None and BASE in scores.scores:
        found, base = (scores.scores[model].natural for model in (FOUND, BASE))
        yield Tile(f"Held-out {plain(scores.objective)}", number(found), f"base {number(base)}")
    elif made.loss is not None and not made.axes:
        yield Tile("Loss", number(made.loss), "on the calibration set")
    if made.counts.candidates:
        yield Tile(
            "Candidates", f"{made.counts.candidates:,}", f"in {duration(made.counts.seconds)} of scoring"
        )


def _scores(made: RunView) -> dict[str, list[Table]]:
    """By the key of the chart that they belong to."""
    return {f"held-out-{n}": [_table(rows)] for n, (_, rows) in enumerate(panels(made))}


def _table(rows: Sequence[HeldOut]) -> Table:
    models = list(rows[0].scores)
    return Table(
        "The numbers, ± standard errors",
        ("", *models, "mean over"),
        tuple(
            Row(
                (
                    Cell("all together" if row.name == TOTAL else row.name),
                    *(_score(row, model) for model in models),
                    Cell(f"{row.scores[FOUND].count:,.0f}"),
                ),
                row.name == TOTAL,
            )
            for row in rows
        ),
        1 + models.index(FOUND),
    )


def _score(row: HeldOut, model: str) -> Cell:
    score = row.scores[model]
    error = score.natural_error
    return Cell(number(score.natural), "" if error is None else f"± {number(error)}")


def _gaps(made: RunView) -> Iterator[Table]:
    if made.gaps:
        yield Table(
            "Search score minus held-out score",
            ("", "on", "search", "held out", "gap", "95 % interval"),
            tuple(
                Row(
                    (
                        Cell(one.objective),
                        Cell(", ".join(one.sets)),
                        Cell(number(one.searched)),
                        Cell(number(one.held_out)),
                        Cell(signed(one.difference, ".3f")),
                        Cell(f"{signed(one.low, '.3f')} to {signed(one.high, '.3f')}"),
                    )
                )
                for one in made.gaps
            ),
        )


def _front(made: RunView) -> Iterator[Table]:
    if made.front:
        yield Table(
            "The recipes of the front",
            ("", "layers", *made.axes),
            tuple(
                Row(
                    (
                        Cell(point.name, "taken" if point.name == made.picked else ""),
                        Cell(str(point.layers)),
                        *(Cell(number(point.scores[name])) for name in made.axes),
                    )
                )
                for point in made.front
            ),
        )


def _facts(made: RunView) -> Iterator[tuple[str, str]]:
    for member in made.members:
        yield member.name, f"{member.model} (a local directory)" if member.local else member.model
    yield from made.settings.items()
    if made.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())


def _documents(made: RunView) -> Iterator[tuple[str, str]]:
    if made.recipe:
        yield "The recipe, as mergekit YAML", made.recipe
    yield "The search config, with everything resolved", made.config
