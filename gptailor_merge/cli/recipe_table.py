"""Draws recipes as tables of slots and models, and compares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path, PurePath

from rich import box

from gptailor_merge import Recipe, Slot, plan
from gptailor_merge.api.recipes import adapter_words
from gptailor_merge.cli.terminal import PlainTable
from gptailor_merge.errors import errors_in
from gptailor_merge.recipe.edits import with_whole_paths
from gptailor_merge.recipe.grouping import runs
from gptailor_merge.recipe.plan import Component, Edit
from gptailor_merge.recipe.wording import operation_text, range_text, source_text

REMOVED = "removed"


_SHORT = 20
"""Characters of the column "how" that stay on one line, however narrow the terminal is."""


_STYLES = {"-": "red", "+": "green", " ": ""}


@dataclass(frozen=True)
class Row:
    """Slots that follow each other and are made alike, or something beside the layers.

    Attributes:
        label: the slots ("0-8"), or "embeddings", "head", "rest", "tokenizer", "healed"; empty for removed
            layers.
        cells: model -> the layers that are taken from it.
        how: the operation.
        mark: in a comparison "-", "+" or " ".
        other: in a comparison, the slots in the second recipe.
    """

    label: str
    cells: Mapping[str, str]
    how: str
    mark: str = " "
    other: str = ""


def of_file(file: Path) -> PlainTable:
    """Draws the recipe in a file."""
    recipe = with_whole_paths(Recipe.load(file), file.parent)
    with errors_in(file):
        return table(rows(recipe), recipe.models, recipe.base_model)


def compare_files(first: Path, second: Path) -> tuple[list[str], PlainTable | None]:
    """Compares two recipe files.

    Returns:
        Sentences on what differs besides the slots, and a table of the slots; no table where both recipes
        make the same model.
    """
    recipes, digests = [Recipe.load(first), Recipe.load(second)], set()
    for recipe, file in zip(recipes, (first, second), strict=True):
        with errors_in(file):
            digests.add(plan(recipe).digest)
    before, after = recipes
    if len(digests) == 1 and before.chat_template == after.chat_template:
        return [f"the same model, digest {digests.pop()}"], None
    models = list(dict.fromkeys((*before.models, *after.models)))
    drawing = table(comparison(before, after), models, before.base_model, compared=True)
    return differences(before, after), drawing


def rows(recipe: Recipe) -> list[Row]:
    """Lists a recipe from the embeddings to the head, with removed layers in their places."""
    resolved = plan(recipe)
    listed = [_component("embeddings", resolved.embeddings)]
    pending: list[Slot] = []
    first = 0
    for part in recipe.slices:
        if part.parameter("op") != "remove":
            length = part.sources[0].length
            pending += resolved.slots[first + len(pending) : first + len(pending) + length]
            continue
        listed += _slot_rows(pending, first)
        first, pending = first + len(pending), []
        cells = {source.model: range_text(*source.layer_range) for source in part.sources}
        listed.append(Row("", cells, REMOVED))
    listed += _slot_rows(pending, first)
    listed.append(_component("head", resolved.head, resolved.outer_edits))
    if resolved.rest is not None:
        listed.append(_component("rest", resolved.rest))
    if resolved.tokenizer != resolved.base_model:
        listed.append(Row("tokenizer", {resolved.tokenizer: "all"}, "select"))
    if resolved.adapter is not None:
        listed.append(Row("healed", {}, f"by {adapter_words(resolved.adapter)}"))
    return listed


def comparison(first: Recipe, second: Recipe) -> list[Row]:
    """Lists the slots of two recipes side by side: "-" only in the first, "+" only in the second."""
    before, after = plan(first).slots, plan(second).slots
    listed: list[Row] = []
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for _, begin, end, other_begin, other_end in matcher.get_opcodes():
        removed, added = before[begin:end], after[other_begin:other_end]
        if removed == added:
            pairs = zip(_slot_rows(removed, begin), _slot_rows(added, other_begin), strict=True)
            listed += [Row(row.label, row.cells, row.how, " ", other.label) for row, other in pairs]
            continue
        listed += [Row(row.label, row.cells, row.how, "-") for row in _slot_rows(removed, begin)]
        listed += [Row("", row.cells, row.how, "+", row.label) for row in _slot_rows(added, other_begin)]
    return listed


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Says what differs besides the slots, one line for each key."""
    before, after = plan(first), plan(second)
    pairs = [
        (name, getattr(first, name), getattr(second, name))
        for name in ("base_model", "dtype", "out_dtype", "chat_template")
    ]
    components = {"embeddings": "embeddings", "head": "head", "rest": "rest_component"}
    pairs += [
        (name, _described(getattr(before, attribute)), _described(getattr(after, attribute)))
        for name, attribute in components.items()
    ]
    pairs.append(("tokenizer", before.tokenizer, after.tokenizer))
    for name in ("gains", "adapter"):
        edits = [getattr(made, name) for made in (before, after)]
        pairs.append((name, *(edit and edit.digest for edit in edits)))
    return [f"{name}: {a or 'not given'} -> {b or 'not given'}" for name, a, b in pairs if a != b]


def table(listed: Sequence[Row], models: Sequence[str], base: str, *, compared: bool = False) -> PlainTable:
    """Draws rows as a table with a column for each model.

    Args:
        models: in the order of the columns.
        compared: True where the rows come from `comparison`.
    """
    headings = [
        f"{name} (base)" if model == base and name != "base" else name
        for model, name in short_names(models).items()
    ]
    numbers = ["", "first", "second"] if compared else ["slots"]
    # A terminal has 80 columns: little space between cells, and what is too long is broken, never cut.
    drawing = PlainTable(box=box.SIMPLE, collapse_padding=True, show_edge=False, pad_edge=False)
    for number in numbers:
        drawing.add_column(number, no_wrap=True)
    for heading in headings:
        drawing.add_column(heading, overflow="fold")
    longest = max((len(row.how) for row in listed), default=0)
    drawing.add_column("how", overflow="fold", no_wrap=longest <= _SHORT)
    for row in listed:
        style = "dim" if row.how == REMOVED else _STYLES[row.mark]
        start = [row.mark, row.label, row.other] if compared else [row.label]
        cells = [row.cells.get(model, "") for model in models]
        drawing.add_row(*start, *cells, row.how, style=style)
    return drawing


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Maps each model to the end of its name, as much of it as tells it from the others.

    >>> short_names(["org/base", "org/math", "other/math"])
    {'org/base': 'base', 'org/math': 'org/math', 'other/math': 'other/math'}
    """
    names = {}
    for model in models:
        parts = PurePath(model).parts
        for count in range(1, len(parts) + 1):
            names[model] = "/".join(parts[-count:])
            if sum("/".join(PurePath(other).parts[-count:]) == names[model] for other in models) == 1:
                break
    return names


def _slot_rows(slots: Sequence[Slot], first: int) -> Iterator[Row]:
    """Yields a row for each run of slots that are made alike.

    Args:
        first: position of the first slot in the model.
    """
    for run in runs(slots):
        slot, length = slots[run.start], len(run)
        cells: dict[str, str] = {}
        for position, (model, layer) in enumerate(slot.layers):
            taken = source_text(range_text(layer, layer + length), slot.operation, position)
            cells[model] = f"{cells[model]}; {taken}" if model in cells else taken
        label = range_text(first + run.start, first + run.stop)
        yield Row(label, cells, operation_text(slot.operation, slot.edits))


def _component(label: str, component: Component, edits: Sequence[Edit] = ()) -> Row:
    operation = component.operation
    cells = {
        model: source_text("all", operation, position) for position, model in enumerate(component.models)
    }
    return Row(label, cells, operation_text(operation, edits))


def _described(component: Component) -> str:
    row = _component("", component)
    return f"{row.how} of " + ", ".join(f"{model} {cell}" for model, cell in row.cells.items())
