"""Draws the heatmaps of a run's page: the map of its recipe, and what good recipes agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from gptailor_merge.report.interactive.figure_style import BREAK, FRAME, ROW, empty_figure
from gptailor_merge.report.palette import Theme, mixed, readable
from gptailor_merge.report.recipe_map import PALEST, Place, Take, cell, slot_number
from gptailor_merge.report.sections import MOST_NUMBERED, map_labels
from gptailor_merge.report.view import RunView

NUMBER = 11
"""Pixels of the numbers in cells."""


class CellTexts(NamedTuple):
    """The texts in one row of a heatmap.

    Attributes:
        texts: one for each column; an empty one is not drawn.
        grounds: the colours that the texts stand on.
    """

    row: int
    texts: list[str]
    grounds: list[str]


def recipe_heatmap(view: RunView, theme: Theme) -> go.Figure:
    """Draws the map of the best recipe: a column for each place, a row for each member."""
    names = [member.name for member in view.members]
    colours = theme.members(names)
    places = view.places
    figure = empty_figure(theme, FRAME + ROW * (len(names) + 1))
    rows = ["slot", *names]
    numbered = len(places) <= MOST_NUMBERED
    texts: list[CellTexts] = []
    for row, name in enumerate(names, 1):
        by_place = [[take for take in place.takes if take.member == name] for place in places]
        shades = [
            PALEST + (1 - PALEST) * max(take.shade for take in takes) if takes else 0.0 for takes in by_place
        ]
        hover = [_hover(place, name, takes) for place, takes in zip(places, by_place, strict=True)]
        figure.add_trace(
            _heatmap(
                [shades],
                colours[name],
                theme.tile,
                y=[row],
                x=list(range(len(places))),
                hovertext=[hover],
                hoverinfo="text",
                name=name,
            )
        )
        cells = [cell(place, takes) for place, takes in zip(places, by_place, strict=True)]
        texts.append(CellTexts(row, cells, [mixed(theme.tile, colours[name], shade) for shade in shades]))
    _write_texts(figure, texts)
    removed = [column for column, place in enumerate(places) if place.slot is None]
    figure.add_trace(
        go.Scatter(
            x=[column for column in removed for _ in names],
            y=[row for _ in removed for row in range(1, len(rows))],
            mode="markers",
            marker={
                "symbol": "x-thin",
                "size": 9 if numbered else 5,
                "line": {"color": theme.muted, "width": 1.5},
            },
            hovertext=[f"layer {places[column].layer} is removed" for column in removed for _ in names],
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
    _label_axes(figure, [str(place.layer) for place in places], rows)
    return figure


def agreement_heatmap(view: RunView, theme: Theme) -> go.Figure:
    """Draws the share of good recipes that keep each layer, and that take it from each member."""
    agreement = view.agreement
    assert agreement is not None
    rows = ["kept", *agreement.taken]
    shares = [agreement.kept, *agreement.taken.values()]
    figure = empty_figure(theme, FRAME + ROW * len(rows))
    hover = [
        [f"{name}, layer {layer}: {share:.0%} of {agreement.recipes}" for layer, share in enumerate(row)]
        for name, row in zip(rows, shares, strict=True)
    ]
    figure.add_trace(
        _heatmap(
            [list(row) for row in shares],
            theme.accent,
            theme.tile,
            x=list(range(view.depth)),
            y=list(range(len(rows))),
            hovertext=hover,
            hoverinfo="text",
        )
    )
    _write_texts(
        figure,
        [
            CellTexts(
                row,
                [f"{share:.0%}".removesuffix("%") if share else "" for share in by_layer],
                [mixed(theme.tile, theme.accent, share) for share in by_layer],
            )
            for row, by_layer in enumerate(shares)
        ],
    )
    for column, row in _choices_of_best(view, rows):
        frame = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", line={"color": theme.ink, "width": 1.5}, **frame)
    _label_axes(figure, [str(layer) for layer in range(view.depth)], rows)
    return figure


def _hover(place: Place, name: str, takes: Sequence[Take]) -> str:
    if place.slot is None:
        return f"layer {place.layer} is removed"
    if not takes:
        return f"slot {place.slot}: nothing of {name}"
    parts = [
        f"layer {take.layer} of {name}" + ("" if take.weight is None else f", weight {take.weight:g}")
        for take in takes
    ]
    without = "".join(f", without {part}" for part in place.without)
    return f"slot {place.slot}: {'; '.join(parts)}<br>{place.method}{without}"


def _choices_of_best(view: RunView, rows: Sequence[str]) -> list[tuple[int, int]]:
    """Returns (layer, row) of every cell that the best recipe chooses."""
    cells = {(place.layer, 0) for place in view.places if place.slot is not None}
    cells |= {(take.layer, rows.index(take.member)) for place in view.places for take in place.takes}
    return sorted(cells)


def _label_axes(figure: go.Figure, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Labels the columns, and the rows from the top."""
    step = 1 if len(columns) <= MOST_NUMBERED else 5
    figure.update_xaxes(
        tickvals=list(range(0, len(columns), step)),
        ticktext=list(columns)[::step],
        range=[-0.5, len(columns) - 0.5],
        showgrid=False,
        tickangle=0,
        tickfont={"size": NUMBER},
        title_text="layer of the family",
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[BREAK.join(lines) for lines in map_labels(rows)],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        ticklabelstandoff=6,
    )


def _write_texts(figure: go.Figure, rows: Sequence[CellTexts]) -> None:
    """Writes texts into the cells, unless there are too many columns to have room for them."""
    cells = [
        (column, row.row, text, readable(ground))
        for row in rows
        for column, (text, ground) in enumerate(zip(row.texts, row.grounds, strict=True))
        if text
    ]
    if not cells or len(rows[0].texts) > MOST_NUMBERED:
        return
    x, y, text, inks = zip(*cells, strict=True)
    font = {"color": list(inks), "size": NUMBER}
    figure.add_trace(go.Scatter(x=x, y=y, text=text, textfont=font, mode="text", hoverinfo="skip"))


def _heatmap(z: Sequence[Sequence[float | None]], colour: str, ground: str, **options: Any) -> go.Heatmap:
    return go.Heatmap(
        z=z,
        zmin=0,
        zmax=1,
        colorscale=[[0, ground], [1, colour]],
        showscale=False,
        xgap=2,
        ygap=2,
        **options,
    )
