"""Remembers every candidate of a search, by number and by digest, also across a resumption.

A resumed search proposes the same again. Candidates that the journal knows are answered from it; no pickled
state is stored or trusted. Of each candidate only its number and its loss stay in memory, so that a search of
many thousands takes no more of it than a short one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import nsmallest
from pathlib import Path

from gptailor_merge.errors import SearchError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.search.candidates import Candidate, Log, Status
from gptailor_merge.search.front import dominates, losses
from gptailor_merge.search.outcomes import duplicate_of

CandidateMaker = Callable[[int, Plan], Candidate]
"""(number, plan) -> what became of the plan."""


class Ledger:
    """Numbers candidates in the order of proposal and writes the new ones into the journal.

    Attributes:
        count: candidates so far.
    """

    def __init__(self, journal: Log, fingerprint: str, axes: Sequence[str] = ()) -> None:
        """
        Args:
            fingerprint: of the objectives that the search scores on.
            axes: the objectives of which a front is sought; none where the loss is minimised.
        """
        self.count = 0
        self._journal, self._fingerprint, self._axes = journal, fingerprint, axes
        self._numbers: dict[str, int] = {}  # digest -> number of the first candidate that was scored
        self._finished: list[tuple[float, int]] = []  # loss and number of what was scored on everything
        self._front: dict[tuple[float, ...], int] = {}  # losses -> number, where a front is sought

    @property
    def file(self) -> Path:
        """The journal's file, for messages."""
        return self._journal.file

    def known(self, number: int) -> Candidate | None:
        """Returns a candidate of the run that is resumed; None where it had not come so far."""
        return self._journal.candidate(number)

    def original(self, digest: str) -> Candidate | None:
        """Returns the first candidate of a digest that was scored."""
        number = self._numbers.get(digest)
        return None if number is None else self._journal.candidate(number)

    def best(self, count: int) -> list[Candidate]:
        """Returns the best candidates of a target size that were scored on everything.

        Where a front is sought, they are those that have been on it for longest.
        """
        numbers = [number for _, number in nsmallest(count, self._finished)]
        if self._axes:
            numbers = sorted(self._front.values())[:count]
        best = (self._journal.candidate(number) for number in numbers)
        return [candidate for candidate in best if candidate is not None]

    def unknown(self, plans: Sequence[Plan]) -> list[Plan]:
        """Returns those of the next plans that must be computed, each once.

        Raises:
            SearchError: the journal is another search's.
        """
        unknown: dict[str, Plan] = {}
        earlier = set(self._numbers)
        for number, plan in enumerate(plans, start=self.count):
            candidate = self.known(number)
            if candidate is not None:
                self._check(candidate, plan)
                earlier.add(plan.digest)
            elif plan.digest not in earlier:
                unknown.setdefault(plan.digest, plan)
        return list(unknown.values())

    def enter(self, plans: Sequence[Plan], candidate_for: CandidateMaker) -> list[Candidate]:
        """Returns the next candidates in order; new ones are recorded in one transaction.

        Args:
            candidate_for: is asked for each of the plans that `unknown` returned.
        """
        candidates, new, first = [], [], dict[str, Candidate]()
        for number, plan in enumerate(plans, start=self.count):
            candidate = self.known(number)
            is_known = candidate is not None
            if candidate is None:
                original = first.get(plan.digest) or self.original(plan.digest)
                candidate = (
                    candidate_for(number, plan) if original is None else duplicate_of(number, original)
                )
                new.append(candidate)
            candidate = replace(candidate, resolved=plan, replayed=is_known)
            first.setdefault(plan.digest, candidate)
            candidates.append(candidate)
        self._journal.record(new)
        for candidate in candidates:
            is_first = self._numbers.setdefault(candidate.digest, candidate.number) == candidate.number
            if is_first and candidate.status == Status.SCORED and candidate.loss is not None:
                self._finish(candidate, candidate.loss)
        self.count += len(candidates)
        return candidates

    def _finish(self, candidate: Candidate, loss: float) -> None:
        """Notes a candidate of a target size that was scored on everything."""
        if not self._axes:
            self._finished.append((loss, candidate.number))
            return
        own = losses(candidate.scores, self._axes)
        if not any(known == own or dominates(known, own) for known in self._front):
            self._front = {known: n for known, n in self._front.items() if not dominates(own, known)}
            self._front[own] = candidate.number

    def enter_measured(self, plan: Plan, candidate_for: CandidateMaker) -> Candidate:
        """Returns the next candidate, a model on which something else than the objectives is measured.

        It is no original of later candidates.

        Raises:
            SearchError: the journal is another search's.
        """
        candidate = self.known(self.count)
        if candidate is not None:
            self._check(candidate, plan)
            candidate = replace(candidate, replayed=True)
        else:
            candidate = candidate_for(self.count, plan)
            self._journal.record([candidate])
        self.count += 1
        return candidate

    def _check(self, candidate: Candidate, plan: Plan) -> None:
        if candidate.digest != plan.digest or candidate.fingerprint != self._fingerprint:
            raise SearchError(
                f"{self.file}: candidate {candidate.number} is {candidate.digest}, this search proposes "
                f"{plan.digest}; the config, the data or the versions of the libraries have changed"
            )
