"""Lays out the figures of a run's page: fonts, margins and axes that all of them share."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from gptailor_merge.report.palette import Theme
from gptailor_merge.visible_text import visible_line

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


BREAK = "<br>"
"""The tag that breaks the lines of a label."""


SIZE = 13
"""Pixels of a line of text."""


ROW, FRAME = 34, 64
"""Pixels of a row, and of the space around all rows."""


def figure_json(figure: go.Figure) -> str:
    """Returns a figure as JSON, in which names are text: plotly reads tags and entities in every label."""
    return json.dumps(_without_tags(json.loads(figure.to_json())), separators=(",", ":"))


def _without_tags(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tags(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_tags(item) for item in value]
    if not isinstance(value, str):
        return value
    lines = (visible_line(line) for line in value.split(BREAK))
    return BREAK.join(line.replace("&", "&amp;").replace("<", "&lt;") for line in lines)


def empty_figure(theme: Theme, height: int, **layout: Any) -> go.Figure:
    """Returns a figure without traces.

    Args:
        height: in pixels.
        layout: further options of plotly's layout.
    """
    axis = {
        "gridcolor": theme.line,
        "linecolor": theme.line,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "ticks": "",
        "title": {"font": {"size": SIZE}, "standoff": 8},
    }
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        paper_bgcolor=theme.surface,
        plot_bgcolor=theme.surface,
        font={"family": FONT, "size": SIZE, "color": theme.ink},
        hoverlabel={
            "bgcolor": theme.tile,
            "bordercolor": theme.line,
            "font": {"color": theme.ink, "family": FONT},
        },
        showlegend=False,
        dragmode=False,
        xaxis=axis,
        yaxis=axis,
    )
    figure.update_layout(**layout)
    return figure
