"""The judge gates plans of a target size, races the rest, and scores nothing twice."""

from __future__ import annotations

from gptailor_merge.scoring.racing import Race
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.judging import Judge
from tests.search.test_driver import FakeGate, RacingScorer
from tests.search.test_ledger import SPACE, scored

PLANS = [SPACE.select(member, {1, 2, removed}) for member in range(3) for removed in (3, 4, 5)]
GATED = SPACE.select(3, {1, 2, 4})
PROBE = SPACE.select(3, {1})


def nobody(count: int) -> list[Candidate]:
    return []


def test_what_the_gate_keeps_out_is_not_scored_and_probes_are_not_gated() -> None:
    executor, gate = RacingScorer(), FakeGate()
    judgements = Judge(executor, gate, (5,), {"kl": 1.0}).judge([GATED, PLANS[0], PROBE], None, nobody)
    assert list(judgements) == [GATED.digest, PLANS[0].digest, PROBE.digest]
    assert gate.judged == [GATED.digest, PLANS[0].digest]
    assert executor.scored == [PLANS[0].digest, PROBE.digest]
    gated, passed, probe = judgements.values()
    assert gated.outcome is None
    assert gated.gate is not None
    assert not gated.passes
    assert passed.gate is not None
    assert passed.passes
    assert probe.gate is None


def test_nothing_is_asked_of_the_executor_for_nothing() -> None:
    executor = RacingScorer()
    assert Judge(executor, None, (5,), {"kl": 1.0}).judge([], 2, nobody) == {}
    assert executor.races == []


def test_a_race_is_run_against_the_units_of_the_best() -> None:
    """They are known from their own race, or scored again, as after a resumption."""
    executor = RacingScorer()
    judge = Judge(executor, None, (5,), {"kl": 1.0})
    best = [scored(number, plan) for number, plan in enumerate(PLANS[:2])]
    judge.judge(PLANS[2:5], 2, lambda count: best[:count])
    again, race = executor.races
    assert again is not None
    assert (again.keep, again.incumbents) == (2, ())
    assert race is not None
    assert (race.keep, len(race.incumbents)) == (2, 2)
    assert executor.scored == [plan.digest for plan in PLANS[:5]]
    judge.judge(PLANS[5:], 2, lambda count: best[:count])
    assert executor.scored == [plan.digest for plan in PLANS]


def test_a_race_of_ones_own_is_run_as_it_is() -> None:
    executor, race = RacingScorer(), Race(1, {"kl": 1.0})
    judgements = Judge(executor, None, (5,), {"kl": 1.0}).judge(PLANS, race, nobody)
    assert executor.races == [race]
    finished = [j for j in judgements.values() if j.outcome is not None and j.outcome.estimate is None]
    assert len(finished) < len(PLANS)
