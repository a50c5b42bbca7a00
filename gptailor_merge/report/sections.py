"""What is shown of a run, in which order and in which words: for the page and for the pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptailor_merge.objectives.scores import TOTAL
from gptailor_merge.report.palette import member_keys
from gptailor_merge.report.view import BASE, HeldOut, Other, RunView
from gptailor_merge.runs.summary import FOUND
from gptailor_merge.search.candidates import Status

OUTCOMES = {
    "scored": "scored on everything",
    "dropped": "dropped early",
    "probe": "probes",
    "duplicate": "duplicates",
    "gated": "kept out by gates",
    "failed": "failed",
    "repaired": "repaired at the end",
}
"""How the journal's words for outcomes read in a figure, in the order in which they are drawn."""


MARKS = ("disc", "ring", "tick", "diamond", "square", "up", "down", "line", "dash", "dot", "dashdot", "box")


OTHER_MARKS = ("diamond", "square", "up", "down")
"""Of other runs' scores, in their order, then again."""


MOST_NUMBERED = 40
"""So many columns of a map have room for numbers; of more, every fifth is numbered."""


OTHER_LINES = ("dash", "dot", "dashdot")
"""Of other runs' losses, likewise."""


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        key: unique on a page.
        alt: what it shows to someone who does not see it.
        width: in pixels, below which it is not drawn but scrolled.
    """

    key: str
    alt: str
    width: int = 0


@dataclass(frozen=True)
class Key:
    """Of a legend.

    Attributes:
        mark: one of MARKS.
        colour: its name, see Theme.named.
    """

    label: str
    mark: str
    colour: str


@dataclass(frozen=True)
class Section:
    """A heading with figures below it, and the legend that they share."""

    key: str
    title: str
    caption: str
    charts: tuple[Chart, ...]
    legend: tuple[Key, ...] = ()


def sections(view: RunView) -> tuple[Section, ...]:
    """What there is to show, what matters most first."""
    made = (_held_out, _map, _front, _progress, _agreement, _cost)
    return tuple(section for one in made for section in one(view))


def headline(view: RunView) -> str:
    """What the run came to, in a sentence."""
    if not view.places:
        return "No candidate has been scored yet"
    parts = [f"{view.kept} of {view.depth} layers"]
    if set(view.sizes) == {BASE, FOUND}:
        parts.append(f"{view.sizes[FOUND].parameters / view.sizes[BASE].parameters:.0%} of the parameters")
    said = " and ".join(parts)
    scores = total(view)
    if scores is not None and BASE in scores.scores:
        found, base = (number(scores.scores[model].natural) for model in (FOUND, BASE))
        return f"{said}: held-out {plain(scores.objective)} {found}, the base’s {base}"
    if view.loss is not None and not view.axes:
        return f"{said}: {loss_name(view)} {number(view.loss)} so far" if not view.done else said
    return said


def total(view: RunView) -> HeldOut | None:
    """The held-out score that stands for all: of the first objective, over all its sets."""
    if not view.held_out:
        return None
    of_first = [one for one in view.held_out if one.objective == view.held_out[0].objective]
    return next((one for one in of_first if one.name == TOTAL), of_first[0])


def loss_name(view: RunView) -> str:
    """What the loss is, for an axis."""
    unit = ", nats" if view.nats else ""
    return f"loss ({' + '.join(view.summed)}{unit})" if view.summed else "loss"


def panels(view: RunView) -> list[tuple[str, list[HeldOut]]]:
    """Objective -> its held-out scores, the total last."""
    by_objective: dict[str, list[HeldOut]] = {}
    for one in view.held_out:
        by_objective.setdefault(one.objective, []).append(one)
    return list(by_objective.items())


def pairs(view: RunView) -> list[tuple[str, str]]:
    """Of a front: which objectives are drawn against each other, across and up."""
    return [(view.axes[0], other) for other in view.axes[1:]]


def plain(objective: str) -> str:
    """Without the number that several of one metric have."""
    return re.sub(r"-\d+$", "", objective)


def number(value: float) -> str:
    """As long as its size asks for."""
    if float(value).is_integer() and abs(value) > 1:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def map_labels(names: Iterable[str]) -> list[list[str]]:
    """The lines of the labels of a map's rows: two at most."""
    found = []
    for name in names:
        first, *more = wrapped(name, 14)
        found.append([first, *([f"{more[0]}…"] if len(more) > 1 else more)])
    return found


def map_width(view: RunView, columns: int) -> int:
    """Pixels that a map with so many columns needs at the least."""
    lines = [line for label in map_labels(member.name for member in view.members) for line in label]
    return 8 * max(map(len, lines)) + 24 + (21 if columns <= MOST_NUMBERED else 10) * columns


def wrapped(name: str, width: int = 20) -> list[str]:
    """The lines of a long name, broken behind what parts its words."""
    lines = [""]
    for word in re.findall(r"[^_\s/-]+[_\s/-]*|[_\s/-]+", name):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return lines


def signed(value: float, form: str) -> str:
    """With a sign that is as wide as a digit."""
    return f"{value:+{form}}".replace("-", "−")


def short(value: float) -> str:
    """A large count, rounded: 1.96 M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return number(value)


def duration(seconds: float) -> str:
    """In the largest unit that it fills."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def listed(things: Iterable[object]) -> str:
    """3, 4 and 8."""
    names = [str(thing) for thing in things]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _map(view: RunView) -> Iterator[Section]:
    if not view.places:
        return
    gone = listed(view.removed)
    one = "layer" if len(view.removed) == 1 else "the layers"
    alt = f"Map of the recipe: {view.kept} slots, {f'without {one} {gone}' if gone else 'no layer removed'}"
    width = map_width(view, len(view.places))
    used = sorted({take.member for place in view.places for take in place.takes})
    numbers = ", with a number" if len(view.places) <= MOST_NUMBERED else ""
    outer = "; ".join(f"{label} of {whose}" for label, whose in view.outer.items())
    caption = (
        "A column for each layer of the family, from first to last, and a row for each model. "
        f"Full colour: the slot takes the layer as it is; paler{numbers}: its weight in a merge. "
        f"Crossed out: the layer is removed. Outside the layers: {outer}."
        + (
            f" Repaired: {'slot' if len(view.repaired) == 1 else 'slots'} {listed(view.repaired)}."
            if view.repaired
            else ""
        )
    )
    yield Section("map", "The recipe", caption, (Chart("map", f"{alt}, from {listed(used)}", width),))


def _held_out(view: RunView) -> Iterator[Section]:
    charts = []
    for position, (objective, rows) in enumerate(panels(view)):
        told = [
            f"{row.name} {number(row.scores[FOUND].natural)} (base {number(row.scores[BASE].natural)})"
            for row in rows
            if BASE in row.scores
        ]
        charts.append(Chart(f"held-out-{position}", f"Held-out {objective}: {', '.join(told)}"))
    if charts:
        known = any(score.error is not None for one in view.held_out for score in one.scores.values())
        bars = (
            " Bars are 95 % intervals, from standard errors over items or sequences of text; all models "
            "have the same ones, so that differences are surer than the bars."
        )
        caption = f"On data that the search has not seen, before and after.{bars if known else ''}"
        yield Section("held-out", "Held-out scores", caption, tuple(charts), tuple(_of_models(view)))


def _of_models(view: RunView) -> Iterator[Key]:
    scored = view.held_out[0].scores
    for member, colour in member_keys([member.name for member in view.members]).items():
        if member in scored:
            yield Key(member, "ring" if member == BASE else "tick", colour)
    yield Key(FOUND, "disc", "accent")
    yield from _of_others([other for other in view.others if other.name in scored], OTHER_MARKS)


def _of_others(others: Sequence[Other], marks: Sequence[str]) -> list[Key]:
    return [Key(other.name, marks[n % len(marks)], "muted") for n, other in enumerate(others)]


def _front(view: RunView) -> Iterator[Section]:
    charts = tuple(
        Chart(f"front-{position}", f"{len(view.front)} recipes of the front: {other} against {cost}")
        for position, (cost, other) in enumerate(pairs(view))
    )
    if view.front:
        more = " One that lies behind here is ahead in another objective." if len(view.axes) > 2 else ""
        caption = (
            f"The {len(view.front)} recipes that no other beats in every objective, on the calibration set; "
            f"grey: all others that were scored on everything.{more}{_measured_on(view)}"
        )
        legend = [Key("the front", "disc", "accent"), Key("taken", "ring", "ink")]
        if view.beaten:
            legend.append(Key("others scored", "disc", "removed"))
        legend += [
            Key(one.name, OTHER_MARKS[n % len(OTHER_MARKS)], "muted") for n, one in enumerate(view.others)
        ]
        yield Section("front", "The front", caption, charts, tuple(legend))


def _measured_on(view: RunView) -> str:
    """What objectives of one metric differ in."""
    told = [
        f"{name} is {plain(name)} on {listed(view.sets[name])}" for name in view.axes if plain(name) != name
    ]
    return f" {'; '.join(told)}." if told else ""


def _progress(view: RunView) -> Iterator[Section]:
    if view.loss is None and not view.front:
        return
    what = "share of the objectives’ box that the front dominates" if view.axes else "lowest loss"
    alts = [f"{what} against {x}".capitalize() for x in ("tokens scored", "seconds of scoring")]
    dots = "" if view.axes else "; of candidates that were dropped early, the estimate"
    lines = "; broken lines: what other methods come to" if view.others else ""
    caption = f"The {what} so far, on the calibration set{dots}{lines}."
    charts = (Chart("progress-tokens", alts[0]), Chart("progress-seconds", alts[1]))
    legend = [Key("best so far", "line", "accent")]
    if not view.axes:
        marks = {"scored": "disc", "dropped": "ring", "repaired": "square"}
        legend += [
            Key(OUTCOMES[status], mark, f"outcome-{status}")
            for status, mark in marks.items()
            if status in view.spent
        ]
    legend += _of_others(view.others, OTHER_LINES)
    yield Section("progress", "Progress of the search", caption, charts, tuple(legend))


def _agreement(view: RunView) -> Iterator[Section]:
    made = view.agreement
    if made is None:
        return
    which = f"{made.recipes} recipes of the front" if view.axes else f"best {made.recipes} recipes"
    always = tuple(layer for layer, share in enumerate(made.kept) if share == 1)
    caption = (
        f"Of the {which}{'' if view.axes else ', a tenth of those scored on everything'}, "
        "the share in % that keeps a layer, and that takes it from each model. "
        "Framed: what the best recipe does."
    )
    alt = f"Of the {which}, all keep the layers {listed(always)}" if always else f"Agreement of the {which}"
    yield Section(
        "agreement",
        "What good recipes agree on",
        caption,
        (Chart("agreement", alt, map_width(view, view.depth)),),
    )


def _cost(view: RunView) -> Iterator[Section]:
    counts = view.counts
    if not counts.candidates:
        return
    told = [
        f"{view.spent[status].candidates:,} {name}"
        for status, name in OUTCOMES.items()
        if status in view.spent and status != Status.REPAIRED
    ]
    repaired = view.spent.get(Status.REPAIRED)
    again = f"; {repaired.candidates:,} of them repaired at the end" if repaired else ""
    caption = (
        f"{counts.candidates:,} candidates: {', '.join(told)}{again}. "
        f"{counts.tokens:,} tokens went through a model, in {duration(counts.seconds)} of scoring."
    )
    alt = f"Candidates, tokens and time by outcome: {', '.join(told)}"
    legend = tuple(
        Key(n, "box", f"outcome-{status}") for status, n in OUTCOMES.items() if status in view.spent
    )
    yield Section("cost", "What it cost", caption, (Chart("cost", alt),), legend)
