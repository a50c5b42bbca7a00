"""Slots that a space can fill: one layer selected, or the attention and the MLP of two layers mixed."""

from __future__ import annotations

from collections.abc import Iterable

from gptailor_merge.recipe.plan import SELECT, Filtered, Operation, Slot

_PARTS_METHOD = "linear"


def select(model: str, layer: int) -> Slot:
    """Returns a slot that is a member's layer as it is."""
    return Slot(((model, layer),), Operation(SELECT, ((),)))


def parts(attention: tuple[str, int], mlp: tuple[str, int], filters: Iterable[str]) -> Slot:
    """Returns a slot with the attention of one (member, layer) and the MLP of another.

    It is a weighted mean with the weights 1 and 0, so that each tensor equals one of the two.

    Args:
        filters: texts that the names of the MLP's tensors contain.
    """
    names = list(filters)

    def weight(of_mlp: float) -> Filtered:
        return (*((name, of_mlp) for name in names), (None, 1.0 - of_mlp))

    inputs = ((("weight", weight(0.0)),), (("weight", weight(1.0)),))
    return Slot((attention, mlp), Operation(_PARTS_METHOD, inputs))


def is_parts(operation: Operation) -> bool:
    """Tells whether an operation takes its sources' tensors by name, as that of `parts` does."""
    weights = [dict(settings).get("weight") for settings in operation.inputs]
    return operation.method == _PARTS_METHOD and len(weights) == 2 and isinstance(weights[0], tuple)
