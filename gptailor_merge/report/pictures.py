"""A picture of a run, as a card or a page shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

from gptailor_merge.objectives.scores import TOTAL
from gptailor_merge.report.palette import LIGHT as THEME
from gptailor_merge.report.palette import mixed, readable
from gptailor_merge.report.recipe_map import PALEST, cell, slot_number
from gptailor_merge.report.search_history import span
from gptailor_merge.report.sections import (
    MOST_NUMBERED,
    Section,
    loss_name,
    map_labels,
    pairs,
    panels,
    plain,
    sections,
    wrapped,
)
from gptailor_merge.report.view import BASE, HeldOut, RunView, view
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.summary import FOUND


class Picture(NamedTuple):
    """An image file beside the card.

    Attributes:
        file: its name.
        title: what it shows, in a few words.
        alt: what it shows to someone who does not see it, in a sentence.
    """

    file: str
    title: str
    alt: str


WIDTH, DPI = 9.0, 160


SIZE = 10


ASIDE = 0.17


def draw_pictures(run: RunDirectory, directory: Path) -> tuple[Picture, ...]:
    """Draw what a run has into a directory, in the order of its page; the same run gives the same bytes.

    Raises:
        InputError: the run's directory holds no run.
    """
    made = view(run)
    drawn: dict[str, Callable[[RunView], Figure]] = {
        "held-out": _held_out,
        "map": _map,
        "front": _front,
        "progress": _progress,
    }
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    for section in sections(made):
        if section.key in drawn:
            file = f"{section.key}.png"
            _save(drawn[section.key](made), directory / file)
            found.append(Picture(file, section.title, _alt(section)))
    return tuple(found)


def _alt(section: Section) -> str:
    return "; ".join(chart.alt for chart in section.charts) + "."


def _save(figure: Figure, file: Path) -> None:
    """Without the version of the library, so that a card does not change with it alone."""
    figure.savefig(file, dpi=DPI, facecolor=THEME.surface, metadata={"Software": None})


def _figure(height: float, rows: int = 1, columns: int = 1, **options: object) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
    for one in axes.flat:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color(THEME.line)
        one.tick_params(colors=THEME.ink, labelsize=SIZE - 1, length=0)
        one.xaxis.label.set(color=THEME.ink, size=SIZE)
        one.yaxis.label.set(color=THEME.ink, size=SIZE)
        one.grid(color=THEME.line, linewidth=0.8)
        one.set_axisbelow(True)
    return figure, list(axes.flat)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above all axes, in as many columns as there is room for."""
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


def _map(made: RunView) -> Figure:
    names = [member.name for member in made.members]
    colours = THEME.members(names)
    figure, (axes,) = _figure(0.9 + 0.36 * (len(names) + 1))
    count = len(made.places)
    numbered = count <= MOST_NUMBERED
    small = SIZE - 1 if count <= 16 else 6.5
    for column, place in enumerate(made.places):
        for row, name in enumerate(names, 1):
            taken = [take for take in place.takes if take.member == name]
            share = max((take.share for take in taken), default=0.0)
            shade = PALEST + (1 - PALEST) * share if taken else 0.0
            colour = mixed(THEME.tile, colours[name], shade)
            axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, linewidth=0))
            text = "×" if place.slot is None else cell(place, taken) if numbered else ""
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
    labels = [str(place.layer) for place in made.places]
    axes.set_xticks(range(0, count, step), labels[::step], size=small)
    rows = ["\n".join(lines) for lines in map_labels(["slot", *names])]
    axes.set_yticks(range(len(names) + 1), rows)
    axes.set_xlabel("layer of the family")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _held_out(made: RunView) -> Figure:
    objectives = panels(made)
    heights = [len(rows) + 1.0 for _, rows in objectives]
    figure, all_axes = _figure(
        0.5 + 0.45 * sum(heights), len(objectives), gridspec_kw={"height_ratios": heights}
    )
    for axes, (objective, rows) in zip(all_axes, objectives, strict=True):
        _draw_scores(axes, made, rows)
        better = "higher is better" if rows[0].higher_is_better else "lower is better"
        axes.set_xlabel(f"{plain(objective)} ({better})")
    _legend(figure, all_axes[0])
    return figure


def _draw_scores(axes: Axes, made: RunView, rows: Sequence[HeldOut]) -> None:
    """A row for each set: above its middle the members, below it what was found."""
    members = [member.name for member in made.members]
    colours = THEME.members(members)
    for name in [*members, FOUND]:
        if name not in rows[0].scores:
            continue
        values = [row.scores[name].natural for row in rows]
        at = [position + (-ASIDE if name in members else ASIDE) for position in range(len(rows))]
        colour = THEME.accent if name == FOUND else colours[name]
        if name not in (BASE, FOUND):
            axes.plot(values, at, "|", color=colour, markersize=9, markeredgewidth=2, label=name)
            continue
        for row, height in zip(rows, at, strict=True):
            axes.plot(row.interval(name) or (), [height] * 2 if row.interval(name) else (), color=colour)
        filled = colour if name == FOUND else THEME.surface
        axes.plot(values, at, "o", color=colour, markerfacecolor=filled, markersize=7, label=name)
    labels = ["\n".join(wrapped("all together" if row.name == TOTAL else row.name)) for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _front(made: RunView) -> Figure:
    both = pairs(made)
    columns = min(2, len(both))
    rows = -(-len(both) // columns)
    figure, all_axes = _figure(0.4 + 3.4 * rows, rows, columns)
    for axes in all_axes[len(both) :]:
        axes.set_visible(False)
    for axes, (across, up) in zip(all_axes, both, strict=False):
        behind = [point[across] for point in made.beaten], [point[up] for point in made.beaten]
        axes.plot(*behind, "o", color=THEME.removed, markersize=4, label="others scored")
        ahead = [p.scores[across] for p in made.front], [p.scores[up] for p in made.front]
        axes.plot(*ahead, "o", color=THEME.accent, markersize=6, label="the front")
        for point in made.front:
            if point.name == made.picked:
                at = [point.scores[across]], [point.scores[up]]
                axes.plot(*at, "o", color=THEME.ink, label="taken", markersize=12, markerfacecolor="none")
        axes.set(xlabel=_axis(made, across), ylabel=_axis(made, up))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    _legend(figure, all_axes[0])
    return figure


def _axis(made: RunView, objective: str) -> str:
    better = "lower is better" if made.lower_is_better[objective] else "higher is better"
    return f"{objective} ({better})"


def _progress(made: RunView) -> Figure:
    figure, (by_tokens, by_seconds) = _figure(3.5, 1, 2, sharey=True)
    for axes, clock in ((by_tokens, "tokens"), (by_seconds, "seconds")):
        kinds = (("dropped", "o", False), ("scored", "o", True), ("repaired", "s", False))
        for status, marker, filled in kinds:
            some = [(t, t.loss) for t in made.trials if t.status == status and t.loss is not None]
            if some and not made.axes:
                colour = THEME.outcomes[status]
                face = colour if filled else "none"
                x, y = [getattr(trial, clock) for trial, _ in some], [loss for _, loss in some]
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=3.5, label=status)
        reached = [(trial, trial.best) for trial in made.trials if trial.best is not None]
        x, y = [getattr(trial, clock) for trial, _ in reached], [best for _, best in reached]
        axes.plot(x, y, color=THEME.accent, linewidth=2.2, drawstyle="steps-post", label="best")
        axes.set_xlim(left=0)
    by_tokens.set(xlabel="tokens scored", ylabel="share of volume" if made.axes else loss_name(made))
    by_tokens.xaxis.set_major_formatter(EngFormatter(sep=" "))
    by_seconds.set_xlabel("seconds of scoring")
    limits = span(made.trials) if not made.axes else (0.0, None)
    if limits is not None:
        by_tokens.set_ylim(*limits)
    _legend(figure, by_tokens)
    return figure
