"""Writes a run's page: one HTML file that needs nothing else."""

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
from gptailor_merge.host.names_and_commands import RECIPE_TITLE
from gptailor_merge.report.formatting import duration, number, plain, short, signed
from gptailor_merge.report.interactive.charts import figures
from gptailor_merge.report.interactive.figure_style import FONT, figure_json
from gptailor_merge.report.palette import DARK, LIGHT
from gptailor_merge.report.sections import headline, sections, total
from gptailor_merge.report.tables import number_tables
from gptailor_merge.report.view import BASE, RunView, view
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.run import Run
from gptailor_merge.visible_text import visible_lines

REFRESH = 2000
"""Milliseconds after which a watched page asks for news."""


_TEMPLATES = files("gptailor_merge.report") / "templates"


@dataclass(frozen=True)
class Tile:
    """A number that a reader looks for first.

    Attributes:
        beside: what the value compares with.
    """

    label: str
    value: str
    beside: str


@dataclass(frozen=True)
class PageContent:
    """The parts of a page that change while a run goes on.

    Attributes:
        main: HTML.
        figures: JSON: theme -> chart key -> figure.
    """

    title: str
    main: str
    figures: str


def write_report(run: Run, others: Sequence[Run] = ()) -> Path:
    """Writes RUN/report.html and returns its path.

    Args:
        others: runs of the same search config by other methods.

    Raises:
        InputError, ConfigError: see Run.record and view.view.
    """
    write_beside(run.report, page(content(view(run.record(), [other.record() for other in others]))))
    return run.report


def content(run_view: RunView) -> PageContent:
    """Renders the parts of the page that depend on the run."""
    main = _template("main.html").render(
        origin=_origin(run_view),
        headline=f"{headline(run_view)}.",
        tiles=list(_tiles(run_view)),
        warnings=run_view.warnings,
        sections=sections(run_view),
        writes=run_view.writes,
        tables=number_tables(run_view),
        facts=list(_facts(run_view)),
        documents=list(_documents(run_view)),
    )
    themes = {"light": figures(run_view, LIGHT), "dark": figures(run_view, DARK)}
    by_theme = {
        theme: ",".join(f'"{key}":{figure_json(figure)}' for key, figure in by_key.items())
        for theme, by_key in themes.items()
    }
    text = ",".join(f'"{theme}":{{{drawn}}}' for theme, drawn in by_theme.items())
    # The JSON stands in a script element, which no text in it may end.
    return PageContent(headline(run_view), main, f"{{{text}}}".replace("<", "\\u003c"))


def page(page_content: PageContent, *, stamp: str | None = None) -> str:
    """Renders the whole page.

    Args:
        stamp: the state that the page shows, where it asks its server for news; None for a file.
    """
    html: str = _template("page.html").render(
        title=page_content.title,
        main=page_content.main,
        figures=page_content.figures,
        plotly=get_plotlyjs(),
        font=FONT,
        light=LIGHT.named,
        dark=DARK.named,
        live=stamp is not None,
        stamp=stamp,
        interval=REFRESH,
    )
    return html


@lru_cache
def _template(name: str) -> Any:
    def load(file: str) -> str:
        return (_TEMPLATES / file).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible_lines
    return environment.get_template(name)


def _origin(run_view: RunView) -> str:
    method = run_view.baseline or "gptailor-evolve"
    recipe = "" if run_view.digest is None else f" · recipe {run_view.digest}"
    if run_view.done:
        return f"Found by {method}{recipe}"
    progress = f"{run_view.counts.candidates:,} of {run_view.budget:,} candidates so far"
    return f"{method} is running{recipe} · {progress}"


def _tiles(run_view: RunView) -> Iterator[Tile]:
    if run_view.places:
        yield Tile("Layers", str(run_view.kept), f"of {run_view.depth}")
    if {BASE, FOUND} <= set(run_view.sizes):
        before, after = run_view.sizes[BASE].parameters, run_view.sizes[FOUND].parameters
        yield Tile("Parameters", short(after), f"of {short(before)}, {signed(after / before - 1, '.1%')}")
    scores = total(run_view)
    if scores is not None and BASE in scores.scores:
        new, old = (scores.scores[model].natural for model in (FOUND, BASE))
        yield Tile(f"Held-out {plain(scores.objective)}", number(new), f"base {number(old)}")
    elif run_view.loss is not None and not run_view.axes:
        yield Tile("Loss", number(run_view.loss), "on the calibration set")
    counts = run_view.counts
    if counts.candidates:
        yield Tile("Candidates", f"{counts.candidates:,}", f"in {duration(counts.seconds)} of scoring")


def _facts(run_view: RunView) -> Iterator[tuple[str, str]]:
    for member in run_view.members:
        yield member.name, f"{member.model} (a local directory)" if member.local else member.model
    yield from run_view.settings.items()
    if run_view.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in run_view.versions.items())


def _documents(run_view: RunView) -> Iterator[tuple[str, str]]:
    if run_view.recipe:
        yield RECIPE_TITLE, run_view.recipe
    yield "The search config, with everything resolved", run_view.config
