"""Fits a linear map that makes up for removed layers, in closed form from hidden states.

The idea is ReplaceMe's (arXiv 2505.02819). At a cut the last layer before it gives h = r + m, where m
is the output of its MLP. The map M is chosen so that r + M m comes close to the base's hidden state y
behind the removed layers, and multiplies the MLP's last weight:

    M = I + D,   D = argmin Σ |y - h - D m|² + ridge · s · n · |D|²

over n tokens, where s is the mean square of m's components. ReplaceMe draws M to zero; drawn to the
identity, a strong ridge leaves the model as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import torch

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import State, advance
from gptailor_merge.objectives.protocols import Forward, Prediction
from gptailor_merge.recipe.plan import MLP, Edit, Plan
from gptailor_merge.repair.cuts import Cut, with_edit
from gptailor_merge.repair.states import DenseStates, states_of
from gptailor_merge.scoring.passes import predictions

CLIMB_BYTES = 1024**3
"""Bytes of a plan's states that are kept on the host."""


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
    """Goes up a plan from cut to cut, on given texts; each layer runs once.

    The states that the climb has come to are kept on the host; where `most_bytes` do not hold those of all
    batches, the other batches begin at the first slot again.

    Args:
        batches: one or more batches of texts.
        dense: the base's states on these batches.
    """

    def __init__(
        self,
        composer: Composer,
        batches: Sequence[Batch],
        dense: DenseStates,
        most_bytes: int = CLIMB_BYTES,
    ) -> None:
        self._composer, self._batches, self._dense = composer, batches, dense
        # MPS has no double precision.
        self._solved_on = composer.device if composer.device.type == "cuda" else torch.device("cpu")
        self._most_bytes = most_bytes
        self._slot = 0
        self._before: dict[int, State] = {}

    def moments(self, plan: Plan, cut: Cut) -> Moments:
        """Runs the layers up to a cut, the last one with and without its MLP.

        Args:
            plan: up to the cut before this one, the same plan as the last time.
        """
        bare = with_edit(plan, cut.slot, Edit(MLP))
        record = [cut.slot - 1, cut.slot] if cut.slot else [0]
        total: Moments | None = None
        held_bytes = 0
        for number, batch in enumerate(self._batches):
            state, first = self._start(number)
            *before, after = states_of(self._composer, plan, batch, state, first, record)
            reached = before[0] if before else None
            (rest,) = states_of(self._composer, bare, batch, reached, cut.slot, [cut.slot])
            wanted = self._dense.behind(cut.removed.stop - 1, number)
            h, r, y = (s.to(self._solved_on, torch.float64).flatten(0, 1) for s in (after, rest, wanted))
            m = h - r
            moments = Moments(m.T @ m, m.T @ (y - h), float((y - h).square().sum()), len(h))
            total = moments if total is None else total + moments
            self._before.pop(number, None)
            if reached is not None and held_bytes + reached.nbytes <= self._most_bytes:
                held_bytes += reached.nbytes
                self._before[number] = reached.cpu()
        assert total is not None
        self._slot = cut.slot
        return total

    def forward(self, plan: Plan) -> Forward:
        """Returns what predicts the batches by a plan whose slots below the last cut are those climbed."""
        last = len(plan.slots) - 1
        model = self._composer.compose(plan)

        def forward(batch: Batch) -> Iterator[Prediction]:
            state, first = self._start(self._batches.index(batch))
            if first:
                state = state.to(self._composer.device)
            (state,) = advance(model, batch.ids, state, range(first, last + 1), {last})
            return predictions(model, batch, state)

        return forward

    def _start(self, number: int) -> tuple[State, int]:
        """Returns the state that a batch's run begins with, and the first slot that is to run."""
        state = self._before.get(number)
        return state, 0 if state is None else self._slot
