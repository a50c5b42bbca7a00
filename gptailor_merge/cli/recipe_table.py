"""Recipes as tables of slots × models, for people to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import PurePath

from rich import box
from rich.markup import escape
from rich.table import Table

from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.grouping import runs
from gptailor_merge.recipe.plan import Operation, Slot
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.recipe.wording import operation_text, range_text, source_text

REMOVED = "removed"


_SHORT = 20
"""Characters of "how" that stay on one line however narrow the terminal is."""


_STYLES = {"-": "red", "+": "green", " ": ""}


@dataclass(frozen=True)
class Row:
    """Slots that follow each other and are made alike, or something beside the layers.

    Attributes:
        label: the slots ("0-8"), or "embeddings", "head", "tokenizer"; empty for removed layers.
        cells: model -> what is taken of it.
        how: the operation.
        mark: in a comparison "-", "+" or " ".
        other: in a comparison, the slots in the second recipe.
    """

    label: str
    cells: Mapping[str, str]
    how: str
    mark: str = " "
    other: str = ""


def rows(recipe: Recipe) -> list[Row]:
    """A recipe from the embeddings to the head, removed layers in their places."""
    resolved = plan(recipe)
    found = [_component("embeddings", resolved.embeddings)]
    slots = list(enumerate(resolved.slots))
    pending: list[tuple[int, Slot]] = []
    for part in recipe.slices:
        length = part.sources[0].length
        if part.parameter("op") != "remove":
            pending += slots[:length]
            del slots[:length]
            continue
        found += [_slots(run) for run in _runs(pending)]
        pending = []
        cells = {source.model: range_text(*source.layer_range) for source in part.sources}
        found.append(Row("", cells, REMOVED))
    found += [_slots(run) for run in _runs(pending)]
    found.append(_component("head", resolved.head))
    if resolved.tokenizer != resolved.base_model:
        found.append(Row("tokenizer", {resolved.tokenizer: "all"}, "select"))
    return found


def comparison(first: Recipe, second: Recipe) -> list[Row]:
    """The slots of two recipes side by side: "-" only in the first, "+" only in the second."""
    one, other = plan(first), plan(second)
    found: list[Row] = []
    matcher = SequenceMatcher(None, one.slots, other.slots, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        if one.slots[a:b] == other.slots[c:d]:
            for run in _runs(list(enumerate(one.slots))[a:b]):
                row, shift = _slots(run), c - a
                there = range_text(run[0][0] + shift, run[-1][0] + shift + 1)
                found.append(Row(row.label, row.cells, row.how, " ", there))
            continue
        found += [
            Row(row.label, row.cells, row.how, "-")
            for row in map(_slots, _runs(list(enumerate(one.slots))[a:b]))
        ]
        found += [
            Row("", row.cells, row.how, "+", row.label)
            for row in map(_slots, _runs(list(enumerate(other.slots))[c:d]))
        ]
    return found


def differences(first: Recipe, second: Recipe) -> list[str]:
    """What differs besides the slots, one line each."""
    one, other = plan(first), plan(second)
    found = [
        (name, getattr(first, name), getattr(second, name))
        for name in ("base_model", "dtype", "out_dtype", "chat_template")
    ]
    found += [
        (name, _described(getattr(one, name)), _described(getattr(other, name)))
        for name in ("embeddings", "head")
    ]
    found.append(("tokenizer", one.tokenizer, other.tokenizer))
    return [f"{name}: {a or 'not given'} -> {b or 'not given'}" for name, a, b in found if a != b]


def table(found: Sequence[Row], models: Sequence[str], base: str, *, compared: bool = False) -> Table:
    """The rows as a table with a column for each model.

    Args:
        models: in the order of the columns.
        compared: whether the rows come from `comparison`.
    """
    headings = [
        f"{name} (base)" if model == base and name != "base" else name
        for model, name in short_names(models).items()
    ]
    numbers = ["", "first", "second"] if compared else ["slots"]
    # A terminal has 80 columns: little space between cells, and what is too long is broken, never cut.
    drawn = Table(box=box.SIMPLE, collapse_padding=True, show_edge=False, pad_edge=False)
    for number in numbers:
        drawn.add_column(number, no_wrap=True)
    for heading in headings:
        drawn.add_column(escape(heading), overflow="fold")
    longest = max((len(row.how) for row in found), default=0)
    drawn.add_column("how", overflow="fold", no_wrap=longest <= _SHORT)
    for row in found:
        style = "dim" if row.how == REMOVED else _STYLES[row.mark]
        start = [row.mark, row.label, row.other] if compared else [row.label]
        cells = [escape(row.cells.get(model, "")) for model in models]
        drawn.add_row(*start, *cells, escape(row.how), style=style)
    return drawn


def short_names(models: Sequence[str]) -> dict[str, str]:
    """model -> as much of the end of its name as tells it from the others."""
    names = {}
    for model in models:
        parts = PurePath(model).parts
        for count in range(1, len(parts) + 1):
            names[model] = "/".join(parts[-count:])
            if sum("/".join(PurePath(other).parts[-count:]) == names[model] for other in models) == 1:
                break
    return names


def _runs(slots: Sequence[tuple[int, Slot]]) -> Iterator[list[tuple[int, Slot]]]:
    """Groups numbered slots that are made alike of layers that follow each other."""
    for run in runs([slot for _, slot in slots]):
        yield list(slots[run.start : run.stop])


def _slots(run: Sequence[tuple[int, Slot]]) -> Row:
    operation = run[0][1].operation
    cells: dict[str, str] = {}
    for position, (model, first) in enumerate(run[0][1].layers):
        own = source_text(range_text(first, first + len(run)), operation, position)
        cells[model] = f"{cells[model]}; {own}" if model in cells else own
    label = range_text(run[0][0], run[-1][0] + 1)
    return Row(label, cells, operation_text(operation, run[0][1].edits))


def _component(label: str, component: tuple[tuple[str, ...], Operation]) -> Row:
    models, operation = component
    cells = {model: source_text("all", operation, position) for position, model in enumerate(models)}
    return Row(label, cells, operation_text(operation))


def _described(component: tuple[tuple[str, ...], Operation]) -> str:
    row = _component("", component)
    return f"{row.how} of " + ", ".join(f"{model} {cell}" for model, cell in row.cells.items())
