"""A linear map that makes up for removed layers, in closed form from hidden states.

The idea is ReplaceMe's (arXiv 2505.02819). At a cut the last layer before it gives h = r + m, where m
is what its MLP adds. The map M is chosen so that r + M m comes close to the base's hidden state y
behind the removed layers, and multiplies the MLP's last weight:

    M = I + D,   D = argmin Σ |y - h - D m|² + ridge · s · n · |D|²

over n tokens, where s is the mean square of m's components. ReplaceMe draws M to zero; drawn to the
identity, a strong ridge leaves the model as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import advance
from gptailor_merge.editing import MLP, Edit
from gptailor_merge.mergekit_plugin import SELECT, Operation
from gptailor_merge.recipe.operations import Plan, Slot
from gptailor_merge.scoring.batching import Batch


@dataclass(frozen=True)
class Cut:
    """Where layers are missing, or where the state is to be the base's all the same.

    Attributes:
        slot: the last before it.
        removed: the layers of the base that are not there; may be empty.
    """

    slot: int
    removed: range


@dataclass(frozen=True)
class Moments:
    """What a map is fitted to, summed over tokens, in double precision on the CPU.

    Attributes:
        gram: Σ m mᵀ [width, width].
        cross: Σ m (y - h)ᵀ [width, width].
        tokens: how many.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    tokens: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.cross + other.cross, self.tokens + other.tokens)

    def solve(self, ridge: float) -> torch.Tensor:
        """The map M [width, width], float64."""
        strength = ridge * self.gram.diagonal().mean()
        one = torch.eye(len(self.gram), dtype=torch.float64)
        drawn: torch.Tensor = torch.linalg.solve(self.gram + strength * one, self.cross)
        return one + drawn.T


def cuts(plan: Plan, depth: int, *, everywhere: bool = False) -> list[Cut]:
    """The cuts that have a layer before them; a layer merged of several counts as its first source.

    Args:
        depth: layers of the base.
        everywhere: also behind slots where no layer is missing.
    """
    following = [*plan.kept[1:], depth]
    gaps = [
        Cut(slot, range(layer + 1, after))
        for slot, (layer, after) in enumerate(zip(plan.kept, following, strict=True))
    ]
    return [cut for cut in gaps if cut.removed or (everywhere and cut.removed.stop == cut.removed.start)]


def moments(composer: Composer, plan: Plan, cut: Cut, batches: Sequence[Batch], depth: int) -> Moments:
    """Run the layers up to a cut, with and without the last MLP, and the base up to where it ends.

    Args:
        batches: one or more, of texts.
        depth: layers of the base.
    """
    bare = with_edit(plan, cut.slot, Edit(MLP))
    base = _base(plan, depth)
    total: Moments | None = None
    for batch in batches:
        record = {cut.slot - 1, cut.slot} if cut.slot else {0}
        states = advance(composer.compose(plan), batch.ids, None, range(cut.slot + 1), record)
        before = states[0] if cut.slot else None
        alone = range(cut.slot, cut.slot + 1)
        (rest,) = advance(composer.compose(bare), batch.ids, before, alone, {cut.slot})
        last = cut.removed.stop - 1
        (wanted,) = advance(composer.compose(base), batch.ids, None, range(last + 1), {last})
        h, r, y = (state.to("cpu", torch.float64).flatten(0, 1) for state in (states[-1], rest, wanted))
        found = Moments((h - r).T @ (h - r), (h - r).T @ (y - h), len(h))
        total = found if total is None else total + found
    assert total is not None
    return total


def with_edit(plan: Plan, position: int, edit: Edit) -> Plan:
    """A plan with an edit more in one slot."""
    slots = list(plan.slots)
    slots[position] = replace(slots[position], edits=(*slots[position].edits, edit))
    return replace(plan, slots=tuple(slots))


def _base(plan: Plan, depth: int) -> Plan:
    """The plan that is the base model."""
    as_it_is = Operation(SELECT, ((),))
    ends = ((plan.base_model,), as_it_is)
    slots = tuple(Slot(((plan.base_model, layer),), as_it_is) for layer in range(depth))
    return replace(plan, slots=slots, embeddings=ends, head=ends, tokenizer=plan.base_model)
