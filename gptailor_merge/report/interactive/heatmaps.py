"""Slots and layers by members, by plotly: the map of a recipe, and what good recipes agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from gptailor_merge.report.interactive.layout import FRAME, ROW, empty
from gptailor_merge.report.palette import Theme, mixed, readable
from gptailor_merge.report.recipe_map import PALEST, Place, Take, cell, slot_number
from gptailor_merge.report.sections import MOST_NUMBERED, map_labels
from gptailor_merge.report.view import RunView

NUMBER = 11
"""Size of the numbers in cells."""


def recipe_map(view: RunView, theme: Theme) -> go.Figure:
    names = [member.name for member in view.members]
    colours = theme.members(names)
    places = view.places
    figure = empty(theme, FRAME + ROW * (len(names) + 1))
    rows = ["slot", *names]
    numbered = len(places) <= MOST_NUMBERED
    written: list[tuple[int, list[str], list[str]]] = []
    for row, name in enumerate(names, 1):
        taken = [[take for take in place.takes if take.member == name] for place in places]
        shades = [PALEST + (1 - PALEST) * max(t.share for t in some) if some else 0.0 for some in taken]
        figure.add_trace(
            _heat(
                [shades],
                colours[name],
                theme.tile,
                y=[row],
                x=list(range(len(places))),
                hovertext=[[_told(place, name, some) for place, some in zip(places, taken, strict=True)]],
                hoverinfo="text",
                name=name,
            )
        )
        texts = [cell(place, some) for place, some in zip(places, taken, strict=True)]
        written.append((row, texts, [mixed(theme.tile, colours[name], shade) for shade in shades]))
    _write(figure, written)
    gone = [column for column, place in enumerate(places) if place.slot is None]
    figure.add_trace(
        go.Scatter(
            x=[column for column in gone for _ in names],
            y=[row for _ in gone for row in range(1, len(rows))],
            mode="markers",
            marker={
                "symbol": "x-thin",
                "size": 9 if numbered else 5,
                "line": {"color": theme.muted, "width": 1.5},
            },
            hovertext=[f"layer {places[column].layer} is removed" for column in gone for _ in names],
            hoverinfo="text",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=list(range(len(places))),
            y=[0] * len(places),
            mode="text",
            text=[slot_number(place, numbered=numbered) for place in places],
            textfont={"color": theme.muted, "size": NUMBER},
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    _columns(figure, [str(place.layer) for place in places], rows)
    return figure


def _told(place: Place, name: str, taken: Sequence[Take]) -> str:
    if place.slot is None:
        return f"layer {place.layer} is removed"
    if not taken:
        return f"slot {place.slot}: nothing of {name}"
    parts = [
        f"layer {take.layer} of {name}" + ("" if take.weight is None else f", weight {take.weight:g}")
        for take in taken
    ]
    without = "".join(f", without {part}" for part in place.without)
    return f"slot {place.slot}: {'; '.join(parts)}<br>{place.method}{without}"


def agreement(view: RunView, theme: Theme) -> go.Figure:
    made = view.agreement
    assert made is not None
    rows = ["kept", *made.taken]
    shares = [made.kept, *made.taken.values()]
    labels = [str(layer) for layer in range(view.depth)]
    figure = empty(theme, FRAME + ROW * len(rows))
    figure.add_trace(
        _heat(
            [list(row) for row in shares],
            theme.accent,
            theme.tile,
            x=list(range(view.depth)),
            y=list(range(len(rows))),
            hovertext=[
                [f"{name}, layer {layer}: {share:.0%} of {made.recipes}" for layer, share in enumerate(row)]
                for name, row in zip(rows, shares, strict=True)
            ],
            hoverinfo="text",
        )
    )
    _write(
        figure,
        [
            (
                row,
                [f"{share:.0%}".removesuffix("%") if share else "" for share in of_row],
                [mixed(theme.tile, theme.accent, share) for share in of_row],
            )
            for row, of_row in enumerate(shares)
        ],
    )
    for column, row in _chosen(view, rows):
        frame = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", line={"color": theme.ink, "width": 1.5}, **frame)
    _columns(figure, labels, rows)
    return figure


def _chosen(view: RunView, rows: Sequence[str]) -> list[tuple[int, int]]:
    """(layer, row) of what the best recipe does."""
    found = {(place.layer, 0) for place in view.places if place.slot is not None}
    found |= {(take.layer, rows.index(take.member)) for place in view.places for take in place.takes}
    return sorted(found)


def _columns(figure: go.Figure, labels: Sequence[str], rows: Sequence[str]) -> None:
    """Axes of a map: a column each, rows from the top."""
    step = 1 if len(labels) <= MOST_NUMBERED else 5
    figure.update_xaxes(
        tickvals=list(range(0, len(labels), step)),
        ticktext=list(labels)[::step],
        range=[-0.5, len(labels) - 0.5],
        showgrid=False,
        tickangle=0,
        tickfont={"size": NUMBER},
        title_text="layer of the family",
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=["<br>".join(lines) for lines in map_labels(rows)],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        ticklabelstandoff=6,
    )


def _write(figure: go.Figure, rows: Sequence[tuple[int, list[str], list[str]]]) -> None:
    """Texts into the cells, where there is room for them.

    Args:
        rows: (row, its texts, the colours that they stand on).
    """
    cells = [
        (column, row, text, readable(ground))
        for row, texts, grounds in rows
        for column, (text, ground) in enumerate(zip(texts, grounds, strict=True))
        if text
    ]
    if not cells or len(rows[0][1]) > MOST_NUMBERED:
        return
    x, y, text, inks = zip(*cells, strict=True)
    font = {"color": list(inks), "size": NUMBER}
    figure.add_trace(go.Scatter(x=x, y=y, text=text, textfont=font, mode="text", hoverinfo="skip"))


def _heat(z: Sequence[Sequence[float | None]], colour: str, ground: str, **more: Any) -> go.Heatmap:
    return go.Heatmap(
        z=z,
        zmin=0,
        zmax=1,
        colorscale=[[0, ground], [1, colour]],
        showscale=False,
        xgap=2,
        ygap=2,
        **more,
    )
