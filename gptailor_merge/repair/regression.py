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
from dataclasses import astuple, dataclass, replace

import torch

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import State, advance
from gptailor_merge.recipe.plan import MLP, SELECT, Component, Edit, Operation, Plan, Slot


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
    """What a map is fitted to, summed over tokens, in double precision.

    Attributes:
        gram: Σ m mᵀ [width, width].
        cross: Σ m (y - h)ᵀ [width, width].
        square: Σ |y - h|².
        tokens: how many.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    square: float
    tokens: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def solve(self, ridge: float) -> torch.Tensor:
        """The map M [width, width], float64."""
        strength = ridge * self.gram.diagonal().mean()
        one = torch.eye(len(self.gram)).to(self.gram)
        drawn: torch.Tensor = torch.linalg.solve(self.gram + strength * one, self.cross)
        return one + drawn.T

    def error(self, matrix: torch.Tensor) -> float:
        """What a map M leaves: Σ |y - h - D m|² / n."""
        less_one = matrix - torch.eye(len(matrix)).to(matrix)
        square = self.square - 2 * (less_one @ self.cross).trace() + (less_one @ self.gram * less_one).sum()
        return float(square) / self.tokens


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


class Climb:
    """Goes up a plan from cut to cut, on some texts; each layer runs once, and so does the base.

    Args:
        cuts: those that `moments` is asked for, in order.
        batches: one or more, of texts.
        depth: layers of the base.
    """

    def __init__(
        self, composer: Composer, plan: Plan, cuts: Sequence[Cut], batches: Sequence[Batch], depth: int
    ) -> None:
        self._composer, self._batches = composer, batches
        # Where double precision is: not on MPS.
        self._solved_on = composer.device if composer.device.type == "cuda" else torch.device("cpu")
        ends = sorted({cut.removed.stop - 1 for cut in cuts})
        base = _base(plan, depth)
        self._wanted = [
            # Not on the device, which may not hold the states of all cuts.
            dict(zip(ends, [state.cpu() for state in self._run(base, batch, None, 0, ends)], strict=True))
            for batch in batches
        ]
        self._slot = 0
        self._before: list[State] = [None] * len(batches)

    def moments(self, plan: Plan, cut: Cut) -> Moments:
        """Run the layers up to a cut, the last one with and without its MLP.

        Args:
            plan: up to the cut before this one, the same as the last time.
        """
        bare = with_edit(plan, cut.slot, Edit(MLP))
        record = [cut.slot - 1, cut.slot] if cut.slot else [0]
        total: Moments | None = None
        for at, batch in enumerate(self._batches):
            *before, after = self._run(plan, batch, self._before[at], self._slot, record)
            self._before[at] = before[0] if before else None
            (rest,) = self._run(bare, batch, self._before[at], cut.slot, [cut.slot])
            wanted = self._wanted[at][cut.removed.stop - 1]
            h, r, y = (s.to(self._solved_on, torch.float64).flatten(0, 1) for s in (after, rest, wanted))
            m = h - r
            found = Moments(m.T @ m, m.T @ (y - h), float((y - h).square().sum()), len(h))
            total = found if total is None else total + found
        assert total is not None
        self._slot = cut.slot
        return total

    def _run(self, plan: Plan, batch: Batch, state: State, first: int, record: Sequence[int]) -> list[State]:
        """The states after some slots; those from `first` to the last of them run."""
        slots = range(first, record[-1] + 1)
        return advance(self._composer.compose(plan, only=slots), batch.ids, state, slots, set(record))


def with_edit(plan: Plan, position: int, edit: Edit) -> Plan:
    """A plan with an edit more in one slot."""
    slots = list(plan.slots)
    slots[position] = replace(slots[position], edits=(*slots[position].edits, edit))
    return replace(plan, slots=tuple(slots))


def _base(plan: Plan, depth: int) -> Plan:
    """The plan that is the base model."""
    as_it_is = Operation(SELECT, ((),))
    ends = Component((plan.base_model,), as_it_is)
    slots = tuple(Slot(((plan.base_model, layer),), as_it_is) for layer in range(depth))
    return replace(plan, slots=slots, embeddings=ends, head=ends, tokenizer=plan.base_model)
