"""Finds the cuts of a plan: the slots behind which layers of the base are missing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptailor_merge.recipe.plan import NORMS, Edit, Plan
from gptailor_merge.space.outer import whole
from gptailor_merge.space.slots import select


@dataclass(frozen=True)
class Cut:
    """A place in a plan where the hidden state is to become the base's again.

    Attributes:
        slot: the last slot before the cut.
        removed: the layers of the base that are missing behind it; may be empty.
    """

    slot: int
    removed: range


def cuts_of(plan: Plan, depth: int, *, everywhere: bool = False) -> list[Cut]:
    """Returns the cuts that have a layer before them; a merged layer counts as its first source.

    Args:
        depth: the number of layers of the base.
        everywhere: also the places behind slots after the first cut where no layer is missing.
    """
    following = [*plan.kept[1:], depth]
    gaps = [
        Cut(slot, range(layer + 1, after))
        for slot, (layer, after) in enumerate(zip(plan.kept, following, strict=True))
    ]
    first = next((cut.slot for cut in gaps if cut.removed), len(gaps))
    return [
        cut for cut in gaps[first:] if cut.removed or (everywhere and cut.removed.stop == cut.removed.start)
    ]


def dense(base_model: str, depth: int) -> Plan:
    """Returns the plan of a whole base; its dtypes are those of the composer."""
    slots = tuple(select(base_model, layer) for layer in range(depth))
    return Plan(base_model, slots, whole(base_model), whole(base_model), base_model, None, None)


def with_edit(plan: Plan, position: int, edit: Edit) -> Plan:
    """Returns a plan whose slot at a position has one more edit; edits of norms stay last, as in recipes."""
    slots = list(plan.slots)
    edits = sorted((*slots[position].edits, edit), key=lambda each: each.part == NORMS)
    slots[position] = replace(slots[position], edits=tuple(edits))
    return replace(plan, slots=tuple(slots))
