"""Decides what is shown of a run, in which order and in which words, for the page and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptailor_merge.objectives.scores import TOTAL
from gptailor_merge.report.formatting import duration, listed, number, plain, wrapped
from gptailor_merge.report.palette import member_keys
from gptailor_merge.report.view import BASE, HeldOut, Other, RunView
from gptailor_merge.runs.record import FOUND
from gptailor_merge.search.candidates import REFINED

OUTCOMES = {
    "scored": "scored on everything",
    "dropped": "dropped early",
    "probe": "probes",
    "duplicate": "duplicates",
    "gated": "kept out by gates",
    "failed": "failed",
    "repaired": "repaired at the end",
    "tuned": "tuned at the end",
    "healed": "healed at the end",
}
"""Status in the journal -> its words in a figure, in the order in which they are drawn."""


MARKS = ("disc", "ring", "tick", "diamond", "square", "up", "down", "line", "dash", "dot", "dashdot", "box")
"""Shapes that a legend may show."""


OTHER_MARKS = ("diamond", "square", "up", "down")
"""Marks for the scores of other runs, in their order; they repeat."""


OTHER_LINES = ("dash", "dot", "dashdot")
"""Lines for the losses of other runs, in their order; they repeat."""


MOST_NUMBERED = 40
"""The most columns of a map that have room for numbers; a wider map numbers every fifth column."""


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        key: unique on a page.
        alt: describes the figure to a reader who does not see it.
        width: in pixels; a narrower window scrolls the figure instead of shrinking it.
    """

    key: str
    alt: str
    width: int = 0


@dataclass(frozen=True)
class LegendKey:
    """One entry of a legend.

    Attributes:
        mark: one of MARKS.
        colour: the name of a colour, see Theme.named.
    """

    label: str
    mark: str
    colour: str


@dataclass(frozen=True)
class FigureSection:
    """A heading with figures below it, and the legend that they share."""

    key: str
    title: str
    caption: str
    charts: tuple[Chart, ...]
    legend: tuple[LegendKey, ...] = ()


def sections(view: RunView) -> tuple[FigureSection, ...]:
    """Returns what there is to show of a run; what matters most comes first."""
    builders = (_held_out, _map, _front, _progress, _agreement, _cost)
    return tuple(section for build in builders for section in build(view))


def headline(view: RunView) -> str:
    """States in a sentence what the run came to."""
    repeats = view.writes is not None and view.writes.repeats
    return f"{_result(view)}{'; it repeats itself when it writes' if repeats else ''}"


def _result(view: RunView) -> str:
    if not view.places:
        return "No candidate has been scored yet"
    parts = [f"{view.kept} of {view.depth} layers"]
    if set(view.sizes) == {BASE, FOUND}:
        parts.append(f"{view.sizes[FOUND].parameters / view.sizes[BASE].parameters:.0%} of the parameters")
    size = " and ".join(parts)
    scores = total(view)
    if scores is not None and BASE in scores.scores:
        after, before = (number(scores.scores[model].natural) for model in (FOUND, BASE))
        return f"{size}: held-out {plain(scores.objective)} {after}, the base’s {before}"
    if view.loss is not None and not view.axes and not view.done:
        return f"{size}: {loss_name(view)} {number(view.loss)} so far"
    return size


def total(view: RunView) -> HeldOut | None:
    """Returns the held-out scores of the first objective over all its sets; None where there are none."""
    if not view.held_out:
        return None
    first = [row for row in view.held_out if row.objective == view.held_out[0].objective]
    return next((row for row in first if row.name == TOTAL), first[0])


def loss_name(view: RunView) -> str:
    """Names the loss, for an axis: the objectives that it adds up, and its unit."""
    unit = ", nats" if view.nats else ""
    return f"loss ({' + '.join(view.summed)}{unit})" if view.summed else "loss"


def panels(view: RunView) -> list[tuple[str, list[HeldOut]]]:
    """Groups the held-out scores by objective; the total of each comes last."""
    by_objective: dict[str, list[HeldOut]] = {}
    for row in view.held_out:
        by_objective.setdefault(row.objective, []).append(row)
    return list(by_objective.items())


def pairs(view: RunView) -> list[tuple[str, str]]:
    """Returns the objectives of a front that are drawn against each other: (across, up)."""
    return [(view.axes[0], objective) for objective in view.axes[1:]]


def map_labels(names: Iterable[str]) -> list[list[str]]:
    """Breaks the labels of a map's rows into at most two lines each."""
    labels = []
    for name in names:
        first, *more = wrapped(name, 14)
        labels.append([first, *([f"{more[0]}…"] if len(more) > 1 else more)])
    return labels


def map_width(view: RunView, columns: int) -> int:
    """Returns the least width in pixels of a map with this number of columns."""
    lines = [line for label in map_labels(member.name for member in view.members) for line in label]
    return 8 * max(map(len, lines)) + 24 + (21 if columns <= MOST_NUMBERED else 10) * columns


def _held_out(view: RunView) -> Iterator[FigureSection]:
    charts = []
    for position, (objective, rows) in enumerate(panels(view)):
        values = [
            f"{row.name} {number(row.scores[FOUND].natural)} (base {number(row.scores[BASE].natural)})"
            for row in rows
            if BASE in row.scores
        ]
        charts.append(Chart(f"held-out-{position}", f"Held-out {objective}: {', '.join(values)}"))
    if charts:
        has_errors = any(score.error is not None for row in view.held_out for score in row.scores.values())
        bars = (
            " Bars are 95 % intervals, from standard errors over items or text sequences. All models are "
            "scored on the same ones, so differences between models are surer than the bars suggest."
        )
        caption = (
            f"Scores before and after, on data that the search has not seen.{bars if has_errors else ''}"
        )
        yield FigureSection("held-out", "Held-out scores", caption, tuple(charts), tuple(_model_keys(view)))


def _model_keys(view: RunView) -> Iterator[LegendKey]:
    scored = view.held_out[0].scores
    for member, colour in member_keys([member.name for member in view.members]).items():
        if member in scored:
            yield LegendKey(member, "ring" if member == BASE else "tick", colour)
    yield LegendKey(FOUND, "disc", "accent")
    yield from _other_keys([other for other in view.others if other.name in scored], OTHER_MARKS)


def _other_keys(others: Sequence[Other], marks: Sequence[str]) -> list[LegendKey]:
    return [LegendKey(other.name, marks[n % len(marks)], "muted") for n, other in enumerate(others)]


def _map(view: RunView) -> Iterator[FigureSection]:
    if not view.places:
        return
    removed = listed(view.removed)
    layers = "layer" if len(view.removed) == 1 else "the layers"
    gone = f"without {layers} {removed}" if removed else "no layer removed"
    used = sorted({take.member for place in view.places for take in place.takes})
    alt = f"Map of the recipe: {view.kept} slots, {gone}, from {listed(used)}"
    numbers = ", with a number" if len(view.places) <= MOST_NUMBERED else ""
    outer = "; ".join(f"{label} of {whose}" for label, whose in view.outer.items())
    caption = (
        "Each column is a slot or a removed layer, from first to last; each row is a model. "
        f"Full colour: the slot takes the layer as it is; paler{numbers}: the layer's weight in a merge. "
        f"Crossed out: the layer is removed. Outside the layers: {outer}."
    )
    if view.repaired:
        slots = "slot" if len(view.repaired) == 1 else "slots"
        caption += f" Repaired: {slots} {listed(view.repaired)}."
    if view.fitted_norms:
        slots = "slot" if len(view.fitted_norms) == 1 else "slots"
        caption += f" With fitted norms: {slots} {listed(view.fitted_norms)}."
    if view.healed:
        caption += f" Healed: {view.healed}."
    width = map_width(view, len(view.places))
    yield FigureSection("map", "The recipe", caption, (Chart("map", alt, width),))


def _front(view: RunView) -> Iterator[FigureSection]:
    charts = tuple(
        Chart(f"front-{position}", f"{len(view.front)} recipes of the front: {objective} against {cost}")
        for position, (cost, objective) in enumerate(pairs(view))
    )
    if view.front:
        more = (
            " A recipe that looks worse in one figure is better in another objective."
            if len(view.axes) > 2
            else ""
        )
        caption = (
            f"The {len(view.front)} recipes that no other recipe beats in every objective, on the "
            f"calibration set; grey: all others that were scored on everything.{more}{_sets_of_axes(view)}"
        )
        legend = [LegendKey("the front", "disc", "accent"), LegendKey("taken", "ring", "ink")]
        if view.beaten:
            legend.append(LegendKey("others scored", "disc", "removed"))
        legend += _other_keys(view.others, OTHER_MARKS)
        yield FigureSection("front", "The front", caption, charts, tuple(legend))


def _sets_of_axes(view: RunView) -> str:
    """States which data the objectives that share a metric are measured on."""
    sentences = [
        f"{name} is {plain(name)} on {listed(view.sets[name])}" for name in view.axes if plain(name) != name
    ]
    return f" {'; '.join(sentences)}." if sentences else ""


def _progress(view: RunView) -> Iterator[FigureSection]:
    if view.loss is None and not view.front:
        return
    best = "share of the objectives’ box that the front dominates" if view.axes else "lowest loss"
    alts = [f"{best} against {clock}".capitalize() for clock in ("tokens scored", "seconds of scoring")]
    dots = "" if view.axes else "; candidates that were dropped early show their estimate"
    lines = "; broken lines: the results of other methods" if view.others else ""
    caption = f"The {best} so far, on the calibration set{dots}{lines}."
    charts = (Chart("progress-tokens", alts[0]), Chart("progress-seconds", alts[1]))
    legend = [LegendKey("best so far", "line", "accent")]
    if not view.axes:
        marks = {
            "scored": "disc",
            "dropped": "ring",
            "repaired": "square",
            "tuned": "diamond",
            "healed": "up",
        }
        legend += [
            LegendKey(OUTCOMES[status], mark, f"outcome-{status}")
            for status, mark in marks.items()
            if status in view.spent
        ]
    legend += _other_keys(view.others, OTHER_LINES)
    yield FigureSection("progress", "Progress of the search", caption, charts, tuple(legend))


def _agreement(view: RunView) -> Iterator[FigureSection]:
    agreement = view.agreement
    if agreement is None:
        return
    count = agreement.recipes
    best = "the best recipe" if count == 1 else f"the best {count} recipes"
    good = f"the {count} recipes of the front" if view.axes else best
    tenth = "" if view.axes else " (a tenth of those scored on everything)"
    caption = (
        f"Choices of {good}{tenth}: the share in % that keeps a layer, and that takes it from each model. "
        "Framed: the choices of the best recipe."
    )
    always = [layer for layer, share in enumerate(agreement.kept) if share == 1]
    alt = f"Choices of {good}" + (f"; all keep the layers {listed(always)}" if always else "")
    chart = Chart("agreement", alt, map_width(view, view.depth))
    yield FigureSection("agreement", "What good recipes agree on", caption, (chart,))


def _cost(view: RunView) -> Iterator[FigureSection]:
    counts = view.counts
    if not counts.candidates:
        return
    by_outcome = ", ".join(
        f"{view.spent[status].candidates:,} {words}"
        for status, words in OUTCOMES.items()
        if status in view.spent and status not in REFINED
    )
    again = "".join(
        f"; {view.spent[status].candidates:,} of them {OUTCOMES[status]}"
        for status in REFINED
        if status in view.spent
    )
    caption = (
        f"{counts.candidates:,} candidates: {by_outcome}{again}. "
        f"{counts.tokens:,} tokens went through a model, in {duration(counts.seconds)} of scoring."
    )
    chart = Chart("cost", f"Candidates, tokens and time by outcome: {by_outcome}")
    legend = tuple(
        LegendKey(words, "box", f"outcome-{status}")
        for status, words in OUTCOMES.items()
        if status in view.spent
    )
    yield FigureSection("cost", "What it cost", caption, (chart,), legend)
