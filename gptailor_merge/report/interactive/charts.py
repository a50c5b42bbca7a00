"""Draws the charts of a run's page: held-out scores, front, progress and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from gptailor_merge.objectives.scores import TOTAL
from gptailor_merge.report.formatting import direction, number, plain, wrapped
from gptailor_merge.report.interactive.figure_style import BREAK, FRAME, ROW, empty_figure
from gptailor_merge.report.interactive.heatmaps import agreement_heatmap, recipe_heatmap
from gptailor_merge.report.palette import Theme
from gptailor_merge.report.search_history import span
from gptailor_merge.report.sections import (
    OTHER_LINES,
    OTHER_MARKS,
    OUTCOMES,
    FigureSection,
    LegendKey,
    loss_name,
    pairs,
    panels,
    sections,
)
from gptailor_merge.report.view import BASE, HeldOut, RunView
from gptailor_merge.runs.record import FOUND

HELD_OUT_ROW, LINE = 46, 19
"""Pixels of a row of held-out scores at least, and of a line of its label."""


ASIDE = 0.17
"""Distance of a held-out score from the middle of its row, in rows."""


SYMBOLS = {
    "disc": "circle",
    "ring": "circle-open",
    "tick": "line-ns",
    "diamond": "diamond-open",
    "square": "square-open",
    "up": "triangle-up-open",
    "down": "triangle-down-open",
}
"""Mark of a legend -> plotly's name of it."""


def figures(view: RunView, theme: Theme) -> dict[str, go.Figure]:
    """Draws all charts of `sections.sections`; chart key -> figure."""
    by_key: dict[str, go.Figure] = {}
    for section in sections(view):
        keys = (chart.key for chart in section.charts)
        by_key |= zip(keys, _DRAW[section.key](view, section, theme), strict=True)
    return by_key


def _held_out(
    view: RunView, objective: str, rows: Sequence[HeldOut], legend: Sequence[LegendKey], theme: Theme
) -> go.Figure:
    """Draws a row for each set: the members above its middle, the found recipe below it."""
    better = direction(lower_is_better=not rows[0].higher_is_better)
    labels = [wrapped("all together" if row.name == TOTAL else row.name) for row in rows]
    row_height = max(HELD_OUT_ROW, LINE * max(map(len, labels)))
    figure = empty_figure(theme, FRAME + row_height * len(rows))
    members = {member.name for member in view.members}
    for key in sorted(legend, key=lambda key: key.label == FOUND):  # the found recipe on top
        colour = theme.named[key.colour]
        symbol = SYMBOLS[key.mark]
        marker = {"symbol": symbol, "size": 10, "color": colour, "line": {"width": 2, "color": colour}}
        lift = -ASIDE if key.label in members else ASIDE
        figure.add_trace(_scores(rows, key.label, lift, marker, bars=key.label in (BASE, FOUND)))
    figure.update_xaxes(title_text=f"{plain(objective)} ({better})", showline=False)
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[BREAK.join(lines) for lines in labels],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        ticklabelstandoff=6,
    )
    return figure


def _scores(
    rows: Sequence[HeldOut], name: str, lift: float, marker: Mapping[str, Any], *, bars: bool
) -> go.Scatter:
    values = [row.scores[name].natural for row in rows]
    ends = [row.interval(name) or (value, value) for row, value in zip(rows, values, strict=True)]
    hover = [
        f"{name}, {row.name}: {number(value)}"
        + ("" if row.interval(name) is None else f"<br>95 %: {number(low)} to {number(high)}")
        for row, value, (low, high) in zip(rows, values, ends, strict=True)
    ]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
        "thickness": 1.5,
        "width": 0,
        "color": marker["color"],
    }
    return go.Scatter(
        x=values,
        y=[row + lift for row in range(len(rows))],
        mode="markers",
        name=name,
        marker=dict(marker),
        error_x=error if bars else None,
        hovertext=hover,
        hoverinfo="text",
    )


def _front(view: RunView, pair: tuple[str, str], theme: Theme) -> go.Figure:
    across, up = pair
    figure = empty_figure(theme, 330)
    behind = {"x": [scores[across] for scores in view.beaten], "y": [scores[up] for scores in view.beaten]}
    grey = {"color": theme.removed, "size": 6}
    figure.add_trace(
        go.Scatter(**behind, mode="markers", marker=grey, name="others scored", hoverinfo="skip")
    )
    for position, other in enumerate(view.others):
        mark = OTHER_MARKS[position % len(OTHER_MARKS)]
        figure.add_trace(
            go.Scatter(
                x=[point.scores[across] for point in other.front],
                y=[point.scores[up] for point in other.front],
                mode="markers",
                marker={"symbol": SYMBOLS[mark], "size": 9, "color": theme.muted},
                name=other.name,
                hovertext=[f"{other.name}: {point.layers} layers" for point in other.front],
                hoverinfo="text",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=[point.scores[across] for point in view.front],
            y=[point.scores[up] for point in view.front],
            mode="markers",
            marker={"color": theme.accent, "size": 9},
            name="the front",
            hovertext=[
                f"{point.name}<br>" + BREAK.join(f"{n}: {number(v)}" for n, v in point.scores.items())
                for point in view.front
            ],
            hoverinfo="text",
        )
    )
    taken = [point for point in view.front if point.name == view.picked]
    figure.add_trace(
        go.Scatter(
            x=[point.scores[across] for point in taken],
            y=[point.scores[up] for point in taken],
            mode="markers",
            marker={"symbol": "circle-open", "size": 17, "color": theme.ink, "line": {"width": 2}},
            name="taken",
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(title_text=_axis_title(view, across))
    figure.update_yaxes(title_text=_axis_title(view, up))
    return figure


def _axis_title(view: RunView, objective: str) -> str:
    return f"{objective} ({direction(lower_is_better=view.lower_is_better[objective])})"


def _progress(view: RunView, clock: str, title: str, theme: Theme) -> go.Figure:
    figure = empty_figure(theme, 290)
    ends = [0, getattr(view.trials[-1], clock)]
    if not view.axes:
        symbols = {
            "dropped": "circle-open",
            "scored": "circle",
            "repaired": "square-open",
            "tuned": "diamond-open",
        }
        for status, symbol in symbols.items():
            trials = [trial for trial in view.trials if trial.status == status]
            figure.add_trace(
                go.Scatter(
                    x=[getattr(trial, clock) for trial in trials],
                    y=[trial.loss for trial in trials],
                    mode="markers",
                    marker={"symbol": symbol, "size": 5, "color": theme.outcomes[status]},
                    name=status,
                    hovertext=[f"candidate {t.number}: {number(t.loss or 0.0)}" for t in trials],
                    hoverinfo="text",
                )
            )
    reached = [trial for trial in view.trials if trial.best is not None]
    figure.add_trace(
        go.Scatter(
            x=[getattr(trial, clock) for trial in reached],
            y=[trial.best for trial in reached],
            mode="lines",
            line={"shape": "hv", "color": theme.accent, "width": 2.5},
            name="best",
            hovertext=[f"after candidate {t.number}: {number(t.best or 0.0)}" for t in reached],
            hoverinfo="text",
        )
    )
    for position, other in enumerate(view.others):
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=[other.value] * 2,
                mode="lines",
                line={"color": theme.muted, "width": 1.5, "dash": OTHER_LINES[position % len(OTHER_LINES)]},
                name=other.name,
                hovertext=[f"{other.name}: {number(other.value)}"] * 2,
                hoverinfo="text",
            )
        )
    figure.update_xaxes(title_text=title, rangemode="tozero", tickformat="~s" if clock == "tokens" else "")
    figure.update_yaxes(title_text="share of volume" if view.axes else loss_name(view))
    if view.axes:
        figure.update_yaxes(rangemode="tozero")
    else:
        figure.update_yaxes(range=span(view.trials, [other.value for other in view.others]))
    return figure


def _cost(view: RunView, theme: Theme) -> go.Figure:
    names = {"candidates": "candidates", "tokens": "tokens", "seconds": "time"}
    totals = {key: sum(getattr(spent, key) for spent in view.spent.values()) for key in names}
    figure = empty_figure(theme, FRAME + ROW * 3, barmode="stack", bargap=0.35)
    rows = list(names.values())
    for status, label in OUTCOMES.items():
        spent = view.spent.get(status)
        if spent is None:
            continue
        shares = [getattr(spent, key) / total if total else 0.0 for key, total in totals.items()]
        figure.add_trace(
            go.Bar(
                x=shares,
                y=rows,
                orientation="h",
                name=label,
                marker={"color": theme.outcomes[status], "line": {"width": 0}},
                hovertext=[
                    f"{label}: {number(getattr(spent, key))} {name} ({share:.0%})"
                    for (key, name), share in zip(names.items(), shares, strict=True)
                ],
                hoverinfo="text",
            )
        )
    figure.update_xaxes(
        range=[0, 1], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%", showgrid=False, showline=False
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticklabelstandoff=6)
    figure.update_layout(margin={"r": 28})
    return figure


_DRAW: Mapping[str, Callable[[RunView, FigureSection, Theme], Iterable[go.Figure]]] = {
    "held-out": lambda view, section, theme: [
        _held_out(view, objective, rows, section.legend, theme) for objective, rows in panels(view)
    ],
    "map": lambda view, section, theme: [recipe_heatmap(view, theme)],
    "front": lambda view, section, theme: [_front(view, pair, theme) for pair in pairs(view)],
    "progress": lambda view, section, theme: [
        _progress(view, "tokens", "tokens scored", theme),
        _progress(view, "seconds", "seconds of scoring", theme),
    ],
    "agreement": lambda view, section, theme: [agreement_heatmap(view, theme)],
    "cost": lambda view, section, theme: [_cost(view, theme)],
}
"""Section -> a function that draws the figures of its charts, in their order."""
