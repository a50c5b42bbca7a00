"""Slices of the slots that a point says, as a recipe's document has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gptailor_merge.recipe.plan import Operation

Made = Mapping[str, Any]
"""A slice, as `Slice` reads it."""


_PARTS_METHOD = "linear"


def source(model: str, layer: int, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One layer of a member."""
    place = {"model": model, "layer_range": [layer, layer + 1]}
    return place if parameters is None else {**place, "parameters": parameters}


def select(model: str, layer: int) -> Made:
    """A slot that is a member's layer."""
    return {"sources": [source(model, layer)], "parameters": {"op": "select"}}


def parts(attention: tuple[str, int], mlp: tuple[str, int], filters: Iterable[str]) -> Made:
    """A slot with the attention of one member's layer and the MLP of another's.

    A weighted mean with the weights 1 and 0: each tensor is equal to one of the two.

    Args:
        filters: what the names of the MLP's tensors contain.
    """
    names = list(filters)

    def weight(of_mlp: float) -> list[dict[str, Any]]:
        return [*({"filter": name, "value": of_mlp} for name in names), {"value": 1.0 - of_mlp}]

    return {
        "sources": [source(*attention, {"weight": weight(0.0)}), source(*mlp, {"weight": weight(1.0)})],
        "parameters": {"op": "merge", "method": _PARTS_METHOD},
    }


def is_parts(operation: Operation) -> bool:
    """Whether an operation takes its sources' tensors by name, as that of `parts` does."""
    weights = [dict(settings).get("weight") for settings in operation.inputs]
    return operation.method == _PARTS_METHOD and len(weights) == 2 and isinstance(weights[0], tuple)


def joined(slots: Iterable[Made]) -> list[Made]:
    """One slice for layers of one member that are selected one after the other."""
    found: list[Made] = []
    for slot in slots:
        if found and _continue(found[-1], slot):
            (before,), (after,) = found[-1]["sources"], slot["sources"]
            both = [before["layer_range"][0], after["layer_range"][1]]
            found[-1] = {**slot, "sources": [{**after, "layer_range": both}]}
        else:
            found.append(slot)
    return found


def _continue(slice_: Made, slot: Made) -> bool:
    if not slice_["parameters"] == slot["parameters"] == {"op": "select"}:
        return False
    (before,), (after,) = slice_["sources"], slot["sources"]
    return bool(before["model"] == after["model"] and before["layer_range"][1] == after["layer_range"][0])
