"""Fits a linear map that makes up for removed layers, in closed form from hidden states.

The idea is ReplaceMe's (arXiv 2505.02819). At a cut the last layer before it gives h = r + m, where m
is the output of its MLP. The map M is chosen so that r + M m comes close to the base's hidden state y
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
from gptailor_merge.repair.cuts import Cut, with_edit


@dataclass(frozen=True)
class Moments:
    """The sums over tokens that a map is fitted to, in double precision.

    Attributes:
        gram: Σ m mᵀ [width, width].
        cross: Σ m (y - h)ᵀ [width, width].
        square: Σ |y - h|².
        tokens: the number of tokens n.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    square: float
    tokens: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))

    def solve(self, ridge: float) -> torch.Tensor:
        """Returns the map M [width, width], float64."""
        strength = ridge * self.gram.diagonal().mean()
        identity = torch.eye(len(self.gram)).to(self.gram)
        transposed: torch.Tensor = torch.linalg.solve(self.gram + strength * identity, self.cross)
        return identity + transposed.T

    def error(self, matrix: torch.Tensor) -> float:
        """Returns the mean square that a map M leaves: Σ |y - h - D m|² / n."""
        difference = matrix - torch.eye(len(matrix)).to(matrix)
        fitted = (difference @ self.gram * difference).sum()
        square = self.square - 2 * (difference @ self.cross).trace() + fitted
        return float(square) / self.tokens


class Climb:
    """Goes up a plan from cut to cut, on given texts; each layer runs once, and so does the base.

    Args:
        cuts: the cuts that `moments` will be asked for, in order.
        batches: one or more batches of texts.
        depth: the number of layers of the base.
    """

    def __init__(
        self, composer: Composer, plan: Plan, cuts: Sequence[Cut], batches: Sequence[Batch], depth: int
    ) -> None:
        self._composer, self._batches = composer, batches
        # MPS has no double precision.
        self._solved_on = composer.device if composer.device.type == "cuda" else torch.device("cpu")
        ends = sorted({cut.removed.stop - 1 for cut in cuts})
        base = _base_of(plan, depth)
        self._wanted = [
            # Kept off the device, which may not hold the states of all cuts.
            dict(zip(ends, [state.cpu() for state in self._run(base, batch, None, 0, ends)], strict=True))
            for batch in batches
        ]
        self._slot = 0
        self._before: list[State] = [None] * len(batches)

    def moments(self, plan: Plan, cut: Cut) -> Moments:
        """Runs the layers up to a cut, the last one with and without its MLP.

        Args:
            plan: up to the cut before this one, the same plan as the last time.
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
            moments = Moments(m.T @ m, m.T @ (y - h), float((y - h).square().sum()), len(h))
            total = moments if total is None else total + moments
        assert total is not None
        self._slot = cut.slot
        return total

    def _run(self, plan: Plan, batch: Batch, state: State, first: int, record: Sequence[int]) -> list[State]:
        """Runs the slots from `first` to the last of `record`, and returns the states after those of it."""
        slots = range(first, record[-1] + 1)
        return advance(self._composer.compose(plan, only=slots), batch.ids, state, slots, set(record))


def _base_of(plan: Plan, depth: int) -> Plan:
    """Returns the plan of the base model."""
    select = Operation(SELECT, ((),))
    ends = Component((plan.base_model,), select)
    slots = tuple(Slot(((plan.base_model, layer),), select) for layer in range(depth))
    return replace(plan, slots=slots, embeddings=ends, head=ends, tokenizer=plan.base_model)
