"""Where plans are scored: in this process, or by another package's workers.

An executor is handed plans and a race and returns outcomes; nothing else crosses. The journal is the same
whoever computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.evaluator import Outcome
from gptailor_merge.scoring.racing import Race


class Executor(Protocol):
    """Scores plans on the objectives, the gates or the held-out set of one run."""

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]:
        """Return the outcomes in the order of the plans.

        A plan that cannot be scored has an outcome with a cause; nothing is raised for it.

        Args:
            race: drops plans that cannot win before they are scored on everything; None scores all.
        """
