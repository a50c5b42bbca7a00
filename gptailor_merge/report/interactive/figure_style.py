"""Lays out the figures of a run's page: fonts, margins and axes that all of them share."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from gptailor_merge.report.palette import Theme

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


SIZE = 13
"""Pixels of a line of text."""


ROW, FRAME = 34, 64
"""Pixels of a row, and of the space around all rows."""


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
