"""Scores plans for a search or a baseline: a judge finds out what is new, a ledger remembers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptailor_merge.errors import SearchError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.racing import Race
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.judging import Judge
from gptailor_merge.search.ledger import Ledger
from gptailor_merge.search.outcomes import candidate_of, measured
from gptailor_merge.search.settings import SearchSettings
from gptailor_merge.space.space import Space


class RememberingRunner:
    """The runner of searches and baselines; see baselines.protocol.Runner.

    Attributes:
        ledger: every candidate so far.
    """

    def __init__(
        self,
        space: Space,
        ledger: Ledger,
        judge: Judge,
        settings: SearchSettings,
        on_candidate: Callable[[Candidate], None],
    ) -> None:
        self.ledger = ledger
        self._space, self._judge, self._settings = space, judge, settings
        self._on_candidate = on_candidate
        self._failures = 0

    def score(
        self, plans: Sequence[Plan], *, status: Status = Status.SCORED, keep: int | Race | None = None
    ) -> list[Candidate]:
        """See Runner.score.

        Raises:
            SearchError: too many failures in a row, or the journal is another search's.
        """
        unknown = self.ledger.unknown(plans)
        judgements = self._judge.judge(unknown, keep, self.ledger.best)

        def candidate_for(number: int, plan: Plan) -> Candidate:
            recipe = self._space.recipe(plan)
            return candidate_of(number, plan, recipe, judgements[plan.digest], self._settings, status)

        candidates = self.ledger.enter(plans, candidate_for)
        for candidate in candidates:
            self._on_candidate(candidate)
            self._count_failure(candidate)
        return candidates

    def measure(self, plan: Plan, take: Callable[[Plan], Outcome]) -> Candidate:
        """See Runner.measure.

        Raises:
            SearchError: the journal is another search's.
        """

        def candidate_for(number: int, plan: Plan) -> Candidate:
            return measured(number, plan, self._space.recipe(plan), take(plan), self._settings.fingerprint)

        candidate = self.ledger.enter_measured(plan, candidate_for)
        self._on_candidate(candidate)
        return candidate

    def original(self, digest: str) -> Candidate | None:
        """See Runner.original."""
        return self.ledger.original(digest)

    def _count_failure(self, candidate: Candidate) -> None:
        self._failures = self._failures + 1 if candidate.failed else 0
        if self._failures >= self._settings.max_failures:
            raise SearchError(
                f"{self._failures} candidates in a row failed; the last: {candidate.cause}\n"
                f"What was scored before is kept in {self.ledger.file}."
            )
