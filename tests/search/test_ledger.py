"""The ledger numbers candidates, answers from the journal, and computes nothing twice."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from gptailor_merge.errors import SearchError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.journal import Journal
from gptailor_merge.scoring.evaluator import Outcome
from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.ledger import Ledger
from gptailor_merge.search.outcomes import Judgement, candidate_of, measured
from gptailor_merge.search.settings import SearchSettings
from tests.space.test_space import space

SPACE = space(8, 5)
SETTINGS = SearchSettings(
    "nevergrad:DE", budget=4, population=2, seed=0, weights={"kl": 1.0}, fingerprint="f"
)
FIRST, SECOND, THIRD = (SPACE.select(0, set(removed)) for removed in ((1, 2, 3), (2, 3, 4), (3, 4, 5)))


def scored(number: int, plan: Plan) -> Candidate:
    outcome = Outcome({"kl": {"t": Score(float(number), 1)}}, None, 0.5, 10)
    recipe = SPACE.recipe(plan)
    return candidate_of(number, plan, recipe, Judgement(outcome=outcome), SETTINGS, Status.SCORED)


def test_each_plan_is_computed_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        ledger = Ledger(journal, "f")
        assert ledger.unknown([FIRST, SECOND, FIRST]) == [FIRST, SECOND]
        ledger.enter([FIRST, SECOND, FIRST], scored)
        assert ledger.unknown([SECOND, THIRD]) == [THIRD]
        (duplicate, _) = ledger.enter([SECOND, THIRD], scored)
        statuses = [(c.number, c.status, c.original, c.tokens) for c in journal.candidates()]
    assert statuses == [
        (0, "scored", None, 10),
        (1, "scored", None, 10),
        (2, "duplicate", 0, 0),
        (3, "duplicate", 1, 0),
        (4, "scored", None, 10),
    ]
    assert (duplicate.digest, duplicate.loss, duplicate.plan) == (SECOND.digest, 1.0, SECOND)


def test_a_resumed_ledger_answers_from_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        before = Ledger(journal, "f").enter([FIRST, SECOND], scored)
        ledger = Ledger(journal, "f")
        assert ledger.known(0) == before[0]
        assert ledger.known(2) is None
        assert ledger.unknown([FIRST, SECOND, FIRST, THIRD]) == [THIRD]
        after = ledger.enter([FIRST, SECOND, FIRST, THIRD], scored)
    assert after[:2] == before
    assert [candidate.status for candidate in after[2:]] == ["duplicate", "scored"]
    assert [candidate.plan for candidate in after] == [FIRST, SECOND, FIRST, THIRD]
    assert [candidate.replayed for candidate in after] == [True, True, False, False]


def test_candidates_stay_on_the_disk(tmp_path: Path) -> None:
    """A search of many thousands takes no more memory than a short one."""
    with Journal(tmp_path / "j.db") as journal:
        ledger = Ledger(journal, "f")
        kept = [weakref.ref(candidate) for candidate in ledger.enter([FIRST, SECOND], scored)]
        gc.collect()
        assert [reference() for reference in kept] == [None, None]
        original = ledger.original(SECOND.digest)
        assert original is not None
        assert (original.number, original.loss, original.plan) == (1, 1.0, SECOND)


def test_what_another_search_proposed_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.db") as journal:
        Ledger(journal, "f").enter([FIRST], scored)
        for plan, fingerprint in ((SECOND, "f"), (FIRST, "g")):
            with pytest.raises(SearchError, match="the config, the data or the versions of the libraries"):
                Ledger(journal, fingerprint).unknown([plan])


def test_the_best_are_those_that_were_scored_on_everything(tmp_path: Path) -> None:
    def outcome_of(number: int, plan: Plan) -> Candidate:
        estimate = 0.0 if number == 0 else None
        outcome = Outcome({"kl": {"t": Score(float(9 - number), 1)}}, None, 0.0, 1, estimate=estimate)
        judgement = Judgement(outcome=outcome)
        return candidate_of(number, plan, SPACE.recipe(plan), judgement, SETTINGS, Status.SCORED)

    with Journal(tmp_path / "j.db") as journal:
        ledger = Ledger(journal, "f")
        ledger.enter([FIRST, SECOND, THIRD], outcome_of)
        assert [candidate.number for candidate in ledger.best(2)] == [2, 1]
        assert [candidate.number for candidate in ledger.best(1)] == [2]


def test_what_is_measured_is_no_original(tmp_path: Path) -> None:
    def taken(number: int, plan: Plan) -> Candidate:
        return measured(number, plan, SPACE.recipe(plan), Outcome({"x": {}}, None, 0.0, 7), "f")

    with Journal(tmp_path / "j.db") as journal:
        ledger = Ledger(journal, "f")
        assert ledger.enter_measured(FIRST, taken).tokens == 7
        assert ledger.original(FIRST.digest) is None
        assert ledger.unknown([FIRST]) == [FIRST]
        assert ledger.count == 1
