"""Draws the figures of a run as PNG files, for its model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

from gptailor_merge.objectives.scores import TOTAL
from gptailor_merge.report.formatting import direction, plain, wrapped
from gptailor_merge.report.palette import LIGHT as THEME
from gptailor_merge.report.palette import mixed, readable
from gptailor_merge.report.recipe_map import PALEST, cell, slot_number
from gptailor_merge.report.search_history import span
from gptailor_merge.report.sections import (
    MOST_NUMBERED,
    FigureSection,
    loss_name,
    map_labels,
    pairs,
    panels,
    sections,
)
from gptailor_merge.report.view import BASE, HeldOut, RunView
from gptailor_merge.runs.record import FOUND
from gptailor_merge.visible_text import visible_line


class Picture(NamedTuple):
    """An image file that a card shows.

    Attributes:
        file: its name.
        title: a few words.
        alt: a sentence that describes the picture to a reader who does not see it.
    """

    file: str
    title: str
    alt: str


WIDTH, DPI = 9.0, 160
"""Width in inches, and pixels per inch."""


SIZE = 10
"""Points of text."""


ASIDE = 0.17
"""Distance of a held-out score from the middle of its row, in rows."""


def draw_pictures(run_view: RunView, directory: Path) -> tuple[Picture, ...]:
    """Draws the figures of a run into a directory and returns them in the order of the run's page.

    The same run gives the same bytes.
    """
    draw: dict[str, Callable[[RunView], Figure]] = {
        "held-out": _held_out,
        "map": _map,
        "front": _front,
        "progress": _progress,
    }
    directory.mkdir(parents=True, exist_ok=True)
    pictures = []
    for section in sections(run_view):
        if section.key in draw:
            file = f"{section.key}.png"
            # A name with dollar signs is a name, and no mathematics.
            with rc_context({"text.parse_math": False, "text.usetex": False}):
                _save(draw[section.key](run_view), directory / file)
            pictures.append(Picture(file, section.title, _alt(section)))
    return tuple(pictures)


def _alt(section: FigureSection) -> str:
    return "; ".join(chart.alt for chart in section.charts) + "."


def _save(figure: Figure, file: Path) -> None:
    """Saves a figure without the version of matplotlib, which would change a card that is otherwise equal."""
    figure.savefig(file, dpi=DPI, facecolor=THEME.surface, metadata={"Software": None})


def _figure(height: float, rows: int = 1, columns: int = 1, **options: object) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
    for plot in axes.flat:
        for side in ("top", "right"):
            plot.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            plot.spines[side].set_color(THEME.line)
        plot.tick_params(colors=THEME.ink, labelsize=SIZE - 1, length=0)
        plot.xaxis.label.set(color=THEME.ink, size=SIZE)
        plot.yaxis.label.set(color=THEME.ink, size=SIZE)
        plot.grid(color=THEME.line, linewidth=0.8)
        plot.set_axisbelow(True)
    return figure, list(axes.flat)


def _label(name: str) -> str:
    """Returns a name as legends show it; matplotlib leaves out those that begin with an underscore."""
    return visible_line(f"\u2009{name}" if name.startswith("_") else name)


def _legend(figure: Figure, axes: Axes) -> None:
    """Places the legend of some axes above the whole figure, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels))
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(len(labels), max(1, int(WIDTH / (0.08 * longest + 0.45)))),
        frameon=False,
        fontsize=SIZE - 1,
        labelcolor=THEME.ink,
        borderpad=0.2,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def _map(run_view: RunView) -> Figure:
    names = [member.name for member in run_view.members]
    colours = THEME.members(names)
    figure, (axes,) = _figure(0.9 + 0.36 * (len(names) + 1))
    count = len(run_view.places)
    numbered = count <= MOST_NUMBERED
    small = SIZE - 1 if count <= 16 else 6.5
    for column, place in enumerate(run_view.places):
        for row, name in enumerate(names, 1):
            takes = [take for take in place.takes if take.member == name]
            share = max((take.shade for take in takes), default=0.0)
            shade = PALEST + (1 - PALEST) * share if takes else 0.0
            colour = mixed(THEME.tile, colours[name], shade)
            axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, linewidth=0))
            text = "×" if place.slot is None else cell(place, takes) if numbered else ""
            ink = THEME.muted if place.slot is None else readable(colour)
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                color=ink,
                size=small if place.takes else small + 4,
            )
        slot = slot_number(place, numbered=numbered)
        axes.text(column, 0, slot, ha="center", va="center", color=THEME.muted, size=small)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(len(names) + 0.5, -0.5))
    step = 1 if numbered else 5
    labels = [str(place.layer) for place in run_view.places]
    axes.set_xticks(range(0, count, step), labels[::step], size=small)
    rows = ["\n".join(lines) for lines in map_labels(["slot", *names])]
    axes.set_yticks(range(len(names) + 1), rows)
    axes.set_xlabel("layer of the family")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _held_out(run_view: RunView) -> Figure:
    objectives = panels(run_view)
    heights = [len(rows) + 1.0 for _, rows in objectives]
    figure, all_axes = _figure(
        0.5 + 0.45 * sum(heights), len(objectives), gridspec_kw={"height_ratios": heights}
    )
    for axes, (objective, rows) in zip(all_axes, objectives, strict=True):
        _draw_scores(axes, run_view, rows)
        better = direction(lower_is_better=not rows[0].higher_is_better)
        axes.set_xlabel(f"{plain(objective)} ({better})")
    _legend(figure, all_axes[0])
    return figure


def _draw_scores(axes: Axes, run_view: RunView, rows: Sequence[HeldOut]) -> None:
    """Draws a row for each set: the members above its middle, the found recipe below it."""
    members = [member.name for member in run_view.members]
    colours = THEME.members(members)
    for name in [*members, FOUND]:
        if name not in rows[0].scores:
            continue
        values = [row.scores[name].natural for row in rows]
        at = [position + (-ASIDE if name in members else ASIDE) for position in range(len(rows))]
        colour = THEME.accent if name == FOUND else colours[name]
        if name not in (BASE, FOUND):
            axes.plot(values, at, "|", color=colour, markersize=9, markeredgewidth=2, label=_label(name))
            continue
        for row, height in zip(rows, at, strict=True):
            axes.plot(row.interval(name) or (), [height] * 2 if row.interval(name) else (), color=colour)
        filled = colour if name == FOUND else THEME.surface
        axes.plot(values, at, "o", color=colour, markerfacecolor=filled, markersize=7, label=_label(name))
    labels = ["\n".join(wrapped("all together" if row.name == TOTAL else row.name)) for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _front(run_view: RunView) -> Figure:
    drawn_pairs = pairs(run_view)
    columns = min(2, len(drawn_pairs))
    rows = -(-len(drawn_pairs) // columns)
    figure, all_axes = _figure(0.4 + 3.4 * rows, rows, columns)
    for axes in all_axes[len(drawn_pairs) :]:
        axes.set_visible(False)
    for axes, (across, up) in zip(all_axes, drawn_pairs, strict=False):
        behind = [point[across] for point in run_view.beaten], [point[up] for point in run_view.beaten]
        axes.plot(*behind, "o", color=THEME.removed, markersize=4, label="others scored")
        ahead = (
            [point.scores[across] for point in run_view.front],
            [point.scores[up] for point in run_view.front],
        )
        axes.plot(*ahead, "o", color=THEME.accent, markersize=6, label="the front")
        for point in run_view.front:
            if point.name == run_view.picked:
                at = [point.scores[across]], [point.scores[up]]
                axes.plot(*at, "o", color=THEME.ink, label="taken", markersize=12, markerfacecolor="none")
        axes.set(xlabel=_axis_title(run_view, across), ylabel=_axis_title(run_view, up))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    _legend(figure, all_axes[0])
    return figure


def _axis_title(run_view: RunView, objective: str) -> str:
    return f"{objective} ({direction(lower_is_better=run_view.lower_is_better[objective])})"


def _progress(run_view: RunView) -> Figure:
    figure, (by_tokens, by_seconds) = _figure(3.5, 1, 2, sharey=True)
    for axes, clock in ((by_tokens, "tokens"), (by_seconds, "seconds")):
        kinds = (
            ("dropped", "o", False),
            ("scored", "o", True),
            ("repaired", "s", False),
            ("tuned", "D", False),
            ("healed", "^", False),
        )
        for status, marker, filled in kinds:
            scored = [(t, t.loss) for t in run_view.trials if t.status == status and t.loss is not None]
            if scored and not run_view.axes:
                colour = THEME.outcomes[status]
                face = colour if filled else "none"
                x, y = [getattr(trial, clock) for trial, _ in scored], [loss for _, loss in scored]
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=3.5, label=status)
        reached = [(trial, trial.best) for trial in run_view.trials if trial.best is not None]
        x, y = [getattr(trial, clock) for trial, _ in reached], [best for _, best in reached]
        axes.plot(x, y, color=THEME.accent, linewidth=2.2, drawstyle="steps-post", label="best")
        axes.set_xlim(left=0)
    by_tokens.set(xlabel="tokens scored", ylabel="share of volume" if run_view.axes else loss_name(run_view))
    by_tokens.xaxis.set_major_formatter(EngFormatter(sep=" "))
    by_seconds.set_xlabel("seconds of scoring")
    limits = span(run_view.trials) if not run_view.axes else (0.0, None)
    if limits is not None:
        by_tokens.set_ylim(*limits)
    _legend(figure, by_tokens)
    return figure
