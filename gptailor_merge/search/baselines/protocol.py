"""The protocol of baselines, and the problem that one is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gptailor_merge.errors import SearchError
from gptailor_merge.objectives.scores import Weights
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.hidden_states import HiddenStates
from gptailor_merge.scoring.racing import Race
from gptailor_merge.search.baselines.subject import Subject
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.space.space import Space


class Runner(Protocol):
    """Scores and measures plans and remembers them as candidates; see search.remembering_runner."""

    def score(
        self, plans: Sequence[Plan], *, status: Status = Status.SCORED, keep: int | Race | None = None
    ) -> list[Candidate]:
        """Returns the next candidates, in the order of the plans.

        Each is answered from the journal, is a duplicate of an earlier one, or is scored now.

        Args:
            status: what a candidate is that was scored without a failure.
            keep: the number of best candidates to race for, or the race itself; None scores every plan
                to the end.
        """

    def measure(self, plan: Plan, take: Callable[[Plan], Outcome]) -> Candidate:
        """Returns the next candidate, on which something else than the objectives is measured."""

    def original(self, digest: str) -> Candidate | None:
        """Returns the first candidate of a digest that was scored."""


class Baseline(Protocol):
    """A method of pruning. All that it measures goes through the runner, so that it can be resumed.

    It has no state but what follows from the problem and from what the runner returns.

    Attributes:
        in_space: True where its plans are in a search space, so that a search can start from them.
    """

    in_space: bool

    def candidates(self, space: Space, budget: int) -> int:
        """Returns the most candidates that it takes, those that it comes to included."""

    def find(self, problem: PruningProblem) -> list[Plan]:
        """Returns what it comes to, one plan for each size of the space.

        Raises:
            SearchError: nothing that it needs could be scored.
            ConfigError: the model or the objectives do not allow it.
        """


@dataclass(frozen=True)
class PruningProblem:
    """The model to prune, the sizes that are wanted, and the means to compare plans.

    Attributes:
        base: the base model.
        model: the one model to prune; None leaves the whole space to baselines that can use it, and the
            base to the others.
        budget: candidates, for baselines that propose as many as they may.
        racing: whether candidates may leave before they are scored on everything.
        hidden: None where no model is at hand.
    """

    space: Space
    runner: Runner
    base: Subject
    budget: int
    seed: int
    weights: Weights
    racing: bool = True
    model: Subject | None = None
    hidden: HiddenStates | None = None

    @property
    def subject(self) -> Subject:
        """The model that is pruned by baselines that prune one."""
        return self.model or self.base

    @property
    def states(self) -> HiddenStates:
        """The hidden states, for baselines that need them."""
        assert self.hidden is not None
        return self.hidden

    def is_complete(self, candidate: Candidate) -> bool:
        """Tells whether a candidate, or the one that it is a duplicate of, was scored on everything."""
        original = self.runner.original(candidate.digest)
        return original is not None and original.loss is not None and original.status != Status.DROPPED

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """Returns the first with the lowest loss of those that were scored on everything.

        Raises:
            SearchError: there is none.
        """
        complete = [candidate for candidate in candidates if self.is_complete(candidate)]
        if not complete:
            cause = candidates[-1].cause if candidates else "nothing was proposed"
            raise SearchError(f"none of {len(candidates)} candidates could be scored; the last: {cause}")
        return min(complete, key=_loss)


def _loss(candidate: Candidate) -> float:
    assert candidate.loss is not None
    return candidate.loss
