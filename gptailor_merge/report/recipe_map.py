"""Maps a recipe: slots and removed layers in order, and what each slot takes from which member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.composing.adapting import adapter_words
from gptailor_merge.healing.facts import facts_on
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import SELECT, Filtered, Operation, Scalar, Slot
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.recipe.wording import component_text, method_text

PALEST = 0.25
"""The shade of a layer whose weight is next to nothing."""


TASK_ARITHMETIC = "task_arithmetic"
"""The method in which the base's share is known: it is what the weights of the variants leave."""

LEAST_SHARE = 0.0005
"""A share below it is none: the weights of a slot do not add up to the last digit."""


@dataclass(frozen=True)
class Take:
    """A layer that a slot takes from a member.

    Attributes:
        share: the weight of the layer in the slot, below 0 where the others have more than all of it; 1
            where it is taken as it is.
        weight: the weight that the recipe states; None where it states none.
    """

    member: str
    layer: int
    share: float
    weight: float | None = None

    @property
    def shade(self) -> float:
        """How strongly the cell is coloured, from 0 to 1."""
        return min(1.0, abs(self.share))


@dataclass(frozen=True)
class Place:
    """A column of the map: a slot, or a layer of the family that is removed.

    Attributes:
        layer: the layer that is removed, or the first that the slot takes.
        slot: the index of the slot; None where the layer is removed.
        method: "select", or the merge method of the slot.
        without: the parts of the layer that are left out.
    """

    layer: int
    slot: int | None
    takes: tuple[Take, ...] = ()
    method: str = ""
    without: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer of the family that the column shows."""
        return (self.layer, *(take.layer for take in self.takes))


@dataclass(frozen=True)
class Agreement:
    """Counts how often good recipes make the same choice.

    Attributes:
        recipes: the number of recipes.
        kept: for each layer of the family the share of the recipes that keep it.
        taken: member -> for each layer the share of the recipes that take it from that member.
    """

    recipes: int
    kept: tuple[float, ...]
    taken: Mapping[str, tuple[float, ...]]


def places(recipe: Recipe, names: Mapping[str, str]) -> tuple[Place, ...]:
    """Returns the columns of a recipe's map, from the first layer to the last.

    Args:
        names: model -> the name of the member.
    """
    slots = list(enumerate(plan(recipe).slots))
    columns: list[Place] = []
    for part in recipe.slices:
        length = part.sources[0].length
        if part.parameter("op") == "remove":
            layers = {layer for source in part.sources for layer in range(*source.layer_range)}
            columns += [Place(layer, None) for layer in sorted(layers)]
            continue
        columns += [_place(number, slot, names) for number, slot in slots[:length]]
        del slots[:length]
    return tuple(columns)


def cell(place: Place, takes: Sequence[Take]) -> str:
    """Writes the text of a cell: weights, and the layers that are not the column's.

    >>> cell(Place(2, 1), [Take("math", 3, 0.5, 0.5)])
    '↕3 .5'
    >>> cell(Place(2, 1), [Take("base", 2, -0.07)])
    '−.07'
    """
    parts = []
    for take in takes:
        layer = "" if take.layer == place.layer else f"↕{take.layer}"
        is_whole = take.weight is None and take.share == 1
        weight = "" if is_whole else _number(take.share)
        parts.append(" ".join(part for part in (layer, weight) if part))
    return " ".join(parts)


def slot_number(place: Place, *, numbered: bool) -> str:
    """Writes the number above a column: its slot.

    Args:
        numbered: whether every column is numbered, or only every fifth.
    """
    return "" if place.slot is None or (place.slot % 5 and not numbered) else str(place.slot)


def outer(recipe: Recipe, names: Mapping[str, str]) -> dict[str, str]:
    """States in words where embeddings, head and tokenizer come from."""
    resolved = plan(recipe)
    sources = {"tokenizer": names.get(resolved.tokenizer, resolved.tokenizer)}
    for label in ("embeddings", "head"):
        edits = resolved.outer_edits if label == "head" else ()
        sources[label] = component_text(
            getattr(resolved, label), lambda model: names.get(model, model), edits
        )
    return {label: sources[label] for label in ("embeddings", "head", "tokenizer")}


def healed(recipe: Recipe, directory: Path) -> str:
    """States which adapter a recipe has, and how it was trained as far as its directory says that."""
    adapter, facts = plan(recipe).adapter, facts_on(recipe, directory)
    words = [] if adapter is None else [f"{adapter_words(adapter)} is added to the layers"]
    return ". ".join(words + ([] if facts is None else [facts.sentence()]))


def agreement(recipes: Sequence[Recipe], names: Mapping[str, str], depth: int) -> Agreement:
    """Counts how many of the recipes keep each layer, and take it from each member.

    Args:
        names: model -> the name of the member.
        depth: number of layers of the family.
    """
    kept = [0] * depth
    taken = {name: [0] * depth for name in names.values()}
    for recipe in recipes:
        slots = plan(recipe).slots
        for layer in {slot.layers[0][1] for slot in slots}:
            kept[layer] += 1
        for model, layer in {source for slot in slots for source in slot.layers}:
            taken[names.get(model, model)][layer] += 1
    count = max(1, len(recipes))
    shares = {name: tuple(n / count for n in by_layer) for name, by_layer in taken.items()}
    return Agreement(len(recipes), tuple(n / count for n in kept), shares)


def _number(share: float) -> str:
    """Writes a share with two digits and without the zero before its point; 0 where rounding left it."""
    if abs(share) < LEAST_SHARE:
        return "0"
    text = f"{abs(share):.2g}"
    return ("−" if share < 0 else "") + text.removeprefix("0")


def _place(number: int, slot: Slot, names: Mapping[str, str]) -> Place:
    operation = slot.operation
    weights = [_weight(operation, position) for position in range(len(slot.layers))]
    takes = tuple(
        Take(names.get(model, model), layer, share, weight)
        for (model, layer), share, weight in zip(
            slot.layers, _shares(operation, weights), weights, strict=True
        )
    )
    without = tuple(edit.part for edit in slot.edits if edit.digest is None)
    return Place(slot.layers[0][1], number, takes, method_text(operation), without)


def _weight(operation: Operation, position: int) -> float | None:
    """Returns the weight of a source; the mean over the filters where tensors differ in it."""
    if operation.method == SELECT:
        return None
    settings, shared = dict(operation.inputs[position]), dict(operation.shared)
    if "t" in shared:
        t = _mean(shared["t"])
        return None if t is None else 1 - t if position == operation.base else t
    return _mean(settings["weight"]) if "weight" in settings else None


def _shares(operation: Operation, weights: Sequence[float | None]) -> list[float]:
    """Returns how much of a slot each of its sources makes up."""
    known = [weight for weight in weights if weight is not None]
    if not known:
        return [1 / len(weights)] * len(weights)
    left = 1 - sum(known) if operation.method == TASK_ARITHMETIC else 1 / len(weights)
    return [left if weight is None else weight for weight in weights]


def _mean(value: Scalar | Filtered) -> float | None:
    """Returns a number, or the mean over the filters of a setting; None where it is no number."""
    if isinstance(value, tuple):
        numbers = [_mean(scalar) for _, scalar in value]
        known = [number for number in numbers if number is not None]
        return sum(known) / len(known) if known else None
    return None if isinstance(value, (str, bool)) else float(value)
