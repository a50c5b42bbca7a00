"""The protocol of optimisers, whichever library they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gptailor_merge.space.points import Point
from gptailor_merge.space.space import Space


@dataclass(frozen=True, eq=False)
class Proposal:
    """A point to try.

    Attributes:
        id: a text that the optimiser gives to this proposal alone; losses come back with it.
    """

    id: str
    point: Point


class Optimizer(Protocol):
    """Proposes points and is told their losses; lower is better.

    It has no state but what follows from its seed and what it was told: a resumed search makes a new one and
    tells it the same again. It draws no random numbers from a global generator.
    """

    @property
    def keeps(self) -> int | None:
        """The number of best candidates that it goes on with.

        A generation is raced for these: the losses of the others may be estimates, but are never as good.
        Where a front is sought, those of candidates that others dominate may be estimates.
        None where every loss counts, so that nothing can be raced.
        """

    def suggest(self, points: Sequence[Point]) -> None:
        """Takes these points as the first proposals, in this order.

        It is called once at most, before the first `ask`, with no fewer points than that asks for.
        """

    def ask(self, count: int) -> Sequence[Proposal]:
        """Proposes `count` points; fewer where it has no more, but one at least."""

    def tell(self, proposal: Proposal, losses: Sequence[float]) -> None:
        """Learn what became of a proposal.

        Args:
            losses: one for each axis of the front, or the loss alone where one recipe is sought. A proposal
                that failed has losses worse than any real one.
        """


class OptimizerFactory(Protocol):
    """Makes an optimiser; an entry point of the group `gptailor_merge.optimizers` names one."""

    def __call__(
        self, space: Space, *, budget: int, population: int, seed: int, axes: Sequence[str]
    ) -> Optimizer:
        """Makes an optimiser of points of the space.

        Args:
            budget: proposals in all.
            population: proposals that are asked for together.
            axes: the objectives of which a front is sought; none where one loss is minimised.

        Raises:
            ConfigError: it cannot search like this.
        """
