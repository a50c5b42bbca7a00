"""The settings of a search, free of everything that is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass

from gptailor_merge.objectives.scores import Weights


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search.

    Attributes:
        optimizer: a name, see search.optimizers.registry.
        budget: candidates in all.
        population: candidates that are proposed together.
        weights: objective -> its weight in the loss.
        fingerprint: identifies what the scores depend on; stored scores count only under the same one.
        axes: the objectives of which a front is sought; none where the loss is minimised.
        max_failures: failures in a row that stop the search.
        racing: whether generations are raced; None races them where it is known what the optimiser keeps.
    """

    optimizer: str
    budget: int
    population: int
    seed: int
    weights: Weights
    fingerprint: str
    axes: tuple[str, ...] = ()
    max_failures: int = 16
    racing: bool | None = None
