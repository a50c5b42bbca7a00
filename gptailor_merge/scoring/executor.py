"""Scoring as the rest of the package sees it: plans and a race go in, outcomes come out.

Nothing else crosses, and all three can be pickled: an executor may score in this process or elsewhere.
Outcomes hold numbers and no live models. See executor_pools for how a run gets its executors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gptailor_merge.objectives.scores import Scores
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.passes import Measured
from gptailor_merge.scoring.racing import Race, Units


@dataclass(frozen=True)
class Outcome:
    """The scores of one plan, or the cause of its failure.

    Attributes:
        scores: objective -> set -> score, over the tokens that were scored; empty for a failure.
        cause: why the plan could not be scored, or None.
        seconds: time spent on the plan; shared work counts for the first plan that needed it.
        tokens: how many tokens it was scored on.
        units: for a plan that a race scored on everything, what its units add to the loss; later races
            compare with them.
        estimate: for a plan that a race dropped, the best guess of its loss.
        measured: the units behind the scores.
    """

    scores: Scores
    cause: str | None
    seconds: float
    tokens: int
    units: Units | None = None
    estimate: float | None = None
    measured: Measured = field(default_factory=dict)

    @classmethod
    def failure(cls, cause: str, seconds: float = 0.0) -> Outcome:
        """Returns the outcome of a plan that could not be scored.

        >>> Outcome.failure("out of memory").scores
        {}
        """
        return cls({}, cause, seconds, 0)


class Executor(Protocol):
    """Scores plans on one section of a search config: the objectives, the gates or the held-out set."""

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]:
        """Returns the outcomes in the order of the plans.

        A plan that cannot be scored has an outcome with a cause; nothing is raised for it.

        Args:
            race: drops plans that cannot win before they are scored on everything; None scores all.

        Raises:
            ScoringError: the workers cannot be reached any more.
        """
