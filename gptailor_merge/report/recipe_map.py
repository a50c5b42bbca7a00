"""A recipe as a map: slots and removed layers in order, and what each slot takes of whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import SELECT, Filtered, Operation, Scalar, Slot
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.recipe.wording import component_text, method_text

PALEST = 0.25
"""The shade of a layer with next to no weight."""


BASE_OWN = "task_arithmetic"
"""The method of which the base's part is known: what the weights of the others leave."""


@dataclass(frozen=True)
class Take:
    """What a slot takes of a member.

    Attributes:
        share: the weight of the layer in the slot, from 0 to 1; 1 where it is taken as it is.
        weight: as the recipe says it; None where it says none.
    """

    member: str
    layer: int
    share: float
    weight: float | None = None


@dataclass(frozen=True)
class Place:
    """A column of the map.

    Attributes:
        layer: of the family: the one that is removed, or the first that the slot takes.
        slot: None where the layer is removed.
        method: "select", or the mergekit method of a merge.
        without: parts of the layer that are left out.
    """

    layer: int
    slot: int | None
    takes: tuple[Take, ...] = ()
    method: str = ""
    without: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer of the family that it is about."""
        return (self.layer, *(take.layer for take in self.takes))


@dataclass(frozen=True)
class Agreement:
    """How often good recipes do the same.

    Attributes:
        recipes: how many they are.
        kept: for each layer of the family the share of them that keeps it.
        taken: member -> for each layer the share that takes it of that member.
    """

    recipes: int
    kept: tuple[float, ...]
    taken: Mapping[str, tuple[float, ...]]


def places(recipe: Recipe, names: Mapping[str, str]) -> tuple[Place, ...]:
    """The columns of a recipe's map, from the first layer to the last.

    Args:
        names: model -> the name of the member.
    """
    slots = list(enumerate(plan(recipe).slots))
    found: list[Place] = []
    for part in recipe.slices:
        length = part.sources[0].length
        if part.parameter("op") == "remove":
            layers = {layer for source in part.sources for layer in range(*source.layer_range)}
            found += [Place(layer, None) for layer in sorted(layers)]
            continue
        found += [_place(number, slot, names) for number, slot in slots[:length]]
        del slots[:length]
    return tuple(found)


def cell(place: Place, taken: Sequence[Take]) -> str:
    """What stands in a cell: weights, and layers that are not the column's."""
    parts = []
    for take in taken:
        layer = "" if take.layer == place.layer else f"↕{take.layer}"
        weight = "" if take.share == 1 else f"{take.share:.2g}".removeprefix("0")
        parts.append(" ".join(part for part in (layer, weight) if part))
    return " ".join(parts)


def slot_number(place: Place, *, numbered: bool) -> str:
    """What stands above a column: its slot, or of many columns every fifth."""
    return "" if place.slot is None or (place.slot % 5 and not numbered) else str(place.slot)


def outer(recipe: Recipe, names: Mapping[str, str]) -> dict[str, str]:
    """Where embeddings, head and tokenizer come from, in words."""
    resolved = plan(recipe)
    found = {"tokenizer": names.get(resolved.tokenizer, resolved.tokenizer)}
    for label in ("embeddings", "head"):
        found[label] = component_text(getattr(resolved, label), lambda model: names.get(model, model))
    return {label: found[label] for label in ("embeddings", "head", "tokenizer")}


def agreement(recipes: Sequence[Recipe], names: Mapping[str, str], depth: int) -> Agreement:
    """Which layers and members these recipes have in common."""
    kept = [0] * depth
    taken = {name: [0] * depth for name in names.values()}
    for recipe in recipes:
        slots = plan(recipe).slots
        for layer in {slot.layers[0][1] for slot in slots}:
            kept[layer] += 1
        for model, layer in {one for slot in slots for one in slot.layers}:
            taken[names.get(model, model)][layer] += 1
    count = max(1, len(recipes))
    shares = {name: tuple(n / count for n in some) for name, some in taken.items()}
    return Agreement(len(recipes), tuple(n / count for n in kept), shares)


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
    """Of a source; where tensors differ in it, the mean over the filters."""
    if operation.method == SELECT:
        return None
    own, shared = dict(operation.inputs[position]), dict(operation.shared)
    if "t" in shared:
        t = _number(shared["t"])
        return None if t is None else 1 - t if position == operation.base else t
    return _number(own["weight"]) if "weight" in own else None


def _shares(operation: Operation, weights: Sequence[float | None]) -> list[float]:
    known = [weight for weight in weights if weight is not None]
    if not known:
        return [1 / len(weights)] * len(weights)
    left = 1 - sum(known) if operation.method == BASE_OWN else 1 / len(weights)
    return [min(1.0, max(0.0, left if weight is None else abs(weight))) for weight in weights]


def _number(value: Scalar | Filtered) -> float | None:
    if isinstance(value, tuple):
        numbers = [_number(one) for _, one in value]
        known = [number for number in numbers if number is not None]
        return sum(known) / len(known) if known else None
    return None if isinstance(value, (str, bool)) else float(value)
