"""Remembers every candidate of a search, by number and by digest, also across a resumption.

A resumed search proposes the same again. Candidates that the journal knows are answered from it; no pickled
state is stored or trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gptailor_merge.errors import SearchError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.search.candidates import Candidate, Log, Status
from gptailor_merge.search.outcomes import duplicate_of

CandidateMaker = Callable[[int, Plan], Candidate]
"""(number, plan) -> what became of the plan."""


class Ledger:
    """Numbers candidates in the order of proposal and writes the new ones into the journal.

    Attributes:
        count: candidates so far.
    """

    def __init__(self, journal: Log, fingerprint: str) -> None:
        """
        Args:
            fingerprint: of the objectives that the search scores on.
        """
        self.count = 0
        self._journal, self._fingerprint = journal, fingerprint
        self._known = {candidate.number: candidate for candidate in journal.candidates()}
        self._by_digest: dict[str, Candidate] = {}

    @property
    def file(self) -> Path:
        """The journal's file, for messages."""
        return self._journal.file

    def known(self, number: int) -> Candidate | None:
        """Returns a candidate of the run that is resumed; None where it had not come so far."""
        return self._known.get(number)

    def original(self, digest: str) -> Candidate | None:
        """Returns the first candidate of a digest that was scored."""
        return self._by_digest.get(digest)

    def best(self, count: int) -> list[Candidate]:
        """Returns the best candidates of a target size that were scored on everything."""
        scored = [
            (candidate.loss, candidate.number, candidate)
            for candidate in self._by_digest.values()
            if candidate.status == Status.SCORED and candidate.loss is not None
        ]
        return [candidate for _, _, candidate in sorted(scored, key=lambda entry: entry[:2])[:count]]

    def unknown(self, plans: Sequence[Plan]) -> list[Plan]:
        """Returns those of the next plans that must be computed, each once.

        Raises:
            SearchError: the journal is another search's.
        """
        unknown: dict[str, Plan] = {}
        earlier = set(self._by_digest)
        for number, plan in enumerate(plans, start=self.count):
            if number in self._known:
                self._check(self._known[number], plan)
                earlier.add(plan.digest)
            elif plan.digest not in earlier:
                unknown.setdefault(plan.digest, plan)
        return list(unknown.values())

    def enter(self, plans: Sequence[Plan], candidate_for: CandidateMaker) -> list[Candidate]:
        """Returns the next candidates in order; new ones are recorded in one transaction.

        Args:
            candidate_for: is asked for each of the plans that `unknown` returned.
        """
        candidates, new = [], []
        for number, plan in enumerate(plans, start=self.count):
            candidate = self._known.get(number)
            if candidate is None:
                original = self._by_digest.get(plan.digest)
                candidate = (
                    candidate_for(number, plan) if original is None else duplicate_of(number, original)
                )
                new.append(candidate)
            self._by_digest.setdefault(plan.digest, candidate)
            candidates.append(candidate)
        self._journal.record(new)
        self.count += len(candidates)
        return candidates

    def enter_measured(self, plan: Plan, candidate_for: CandidateMaker) -> Candidate:
        """Returns the next candidate, a model on which something else than the objectives is measured.

        It is no original of later candidates.

        Raises:
            SearchError: the journal is another search's.
        """
        candidate = self._known.get(self.count)
        if candidate is not None:
            self._check(candidate, plan)
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
