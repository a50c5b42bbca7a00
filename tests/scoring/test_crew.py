"""Workers that die, hang, fail to start, leave and come, on a cluster that is made up and has its own clock."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from gptailor_merge.errors import ScoringError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.cluster import WorkerLostError
from gptailor_merge.scoring.crew import FAILED_STARTS, STARTING_AT_ONCE, Crew, Patience
from gptailor_merge.scoring.finalist_fits import Fitted, SentFit
from gptailor_merge.scoring.generation import RungResult
from gptailor_merge.testing.executors import tiny_job, tiny_plans


@dataclass(eq=False)
class FakeWorker:
    """A worker that answers after a while, unless something happens to it."""

    number: int
    asked: list[int] = field(default_factory=list)


@dataclass
class FakeCluster:
    """Time passes only while it is waited for.

    Attributes:
        size: workers that there should be.
        trouble: worker's number, plans (empty for a start) -> what happens: an error, or seconds until the
            answer.
        trouble_in_fits: the same for plans that are refined.
    """

    size: int
    trouble: Any = lambda worker, plans: 1.0
    trouble_in_fits: Any = lambda worker, plans: 1.0
    now: float = 0.0
    started: list[FakeWorker] = field(default_factory=list)
    stopped: list[FakeWorker] = field(default_factory=list)
    answers: dict[object, tuple[float, Any]] = field(default_factory=dict)
    most_starting: int = 0

    def wanted(self) -> int:
        return self.size

    def start(self) -> tuple[Hashable, Hashable]:
        worker = FakeWorker(len(self.started))
        self.started.append(worker)
        return worker, self._ticket(worker, (), True)

    def score(self, worker: Any, section: Any, rungs: range, plans: Sequence[Plan]) -> Hashable:
        assert worker not in self.stopped
        worker.asked.append(len(plans))
        return self._ticket(worker, tuple(plans), self.scored(section, rungs, plans))

    def share(self, content: bytes) -> Any:
        return content

    def fit(self, worker: Any, fitting: Any, plans: Sequence[Plan]) -> Hashable:
        assert worker not in self.stopped
        worker.asked.append(len(plans))
        happens = self.trouble_in_fits(worker.number, plans)
        return self._ticket(worker, tuple(plans), [self.fitted(fitting, plan) for plan in plans], happens)

    def scored(self, section: Any, rungs: range, plans: Sequence[Plan]) -> list[RungResult]:
        return [RungResult({}, None, float(rungs.start), len(plan.slots)) for plan in plans]

    def fitted(self, fitting: Any, plan: Plan) -> SentFit:
        return SentFit(Fitted(plan, tokens=len(plan.slots)))

    def _ticket(self, worker: FakeWorker, plans: Sequence[Plan], answer: Any, happens: Any = None) -> object:
        ticket = object()
        happens = self.trouble(worker.number, plans) if happens is None else happens
        if isinstance(happens, Exception):
            happens, answer = 0.5, happens
        self.answers[ticket] = self.now + happens, answer
        return ticket

    def first_answered(self, tickets: Sequence[Hashable], seconds: float) -> Hashable | None:
        self.most_starting = max(self.most_starting, sum(self.answers[t][1] is True for t in tickets))
        soonest = min(tickets, key=lambda ticket: self.answers[ticket][0], default=None)
        if soonest is None or self.answers[soonest][0] > self.now + seconds:
            self.now += seconds
            return None
        self.now = max(self.now, self.answers[soonest][0])
        return soonest

    def answer(self, ticket: Hashable) -> Any:
        answer = self.answers[ticket][1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self, worker: Any) -> None:
        self.stopped.append(worker)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Plan]:
    return tiny_plans(tiny_job(tmp_path_factory.mktemp("job")))


def crew_of(cluster: FakeCluster, notes: list[str] | None = None, **patience: float) -> Crew:
    progress = (lambda step: None) if notes is None else notes.append
    return Crew(cluster, patience=Patience(**patience), progress=progress, clock=lambda: cluster.now)


def scored(crew: Crew, plans: Sequence[Plan], rung: int = 0) -> list[str | None]:
    """Scores plans and returns the causes of those that failed; every answer is that of its plan."""
    results = crew.score_rungs("objectives", range(rung, rung + 1), plans)
    for plan, result in zip(plans, results, strict=True):
        assert result.cause or (result.seconds, result.tokens) == (rung, len(plan.slots))
    return [result.cause for result in results]


def test_a_generation_is_divided_among_workers_that_stay(plans: list[Plan]) -> None:
    cluster = FakeCluster(2)
    crew = crew_of(cluster)
    for rung in range(3):
        assert scored(crew, plans, rung) == [None] * len(plans)
    assert len(cluster.started) == 2
    assert all(sum(worker.asked) > 0 for worker in cluster.started)
    assert sum(sum(worker.asked) for worker in cluster.started) == 3 * len(plans)
    crew.close()
    assert cluster.stopped == cluster.started


def test_no_plans_need_no_worker() -> None:
    assert scored(crew_of(FakeCluster(2)), []) == []


def test_many_workers_do_not_start_at_once(plans: list[Plan]) -> None:
    cluster = FakeCluster(64)
    crew = crew_of(cluster)
    for rung in range(30):
        scored(crew, plans, rung)
    assert cluster.most_starting == STARTING_AT_ONCE
    assert len(cluster.started) > STARTING_AT_ONCE


def test_workers_that_die_at_random_change_nothing(plans: list[Plan]) -> None:
    rng = random.Random(3)
    cluster = FakeCluster(3, lambda worker, plans: WorkerLostError("died") if rng.random() < 0.2 else 1.0)
    notes: list[str] = []
    crew = crew_of(cluster, notes)
    for rung in range(40):
        causes = scored(crew, plans, rung)
        assert all(cause is None or cause.startswith("2 workers were lost") for cause in causes)
    assert crew.lost == len(cluster.stopped) > 20
    assert notes[0] == "note: a worker was lost (died); what it was scoring is scored again"


def test_a_plan_that_no_worker_survives_fails_and_the_others_do_not(plans: list[Plan]) -> None:
    deadly = plans[2]
    cluster = FakeCluster(
        2, lambda worker, part: WorkerLostError("memory ran out") if deadly in part else 1.0
    )
    causes = scored(crew_of(cluster), plans)
    assert causes[2] == "2 workers were lost while they scored it; the last: memory ran out"
    assert causes[:2] + causes[3:] == [None] * (len(plans) - 1)


def test_a_plan_is_not_to_blame_for_a_machine_that_leaves(plans: list[Plan]) -> None:
    left = iter(range(4))

    def trouble(worker: int, part: Sequence[Plan]) -> Any:
        is_lost = part and next(left, None) is not None
        return WorkerLostError("its machine left", with_its_node=True) if is_lost else 1.0

    assert scored(crew_of(FakeCluster(1, trouble)), plans[:1]) == [None]


def test_a_worker_that_hangs_is_replaced(plans: list[Plan]) -> None:
    """The bound follows from what the rung's other parts took."""
    hangs = {"now": False}

    def trouble(worker: int, part: Sequence[Plan]) -> float:
        return 1e9 if hangs["now"] and part and worker == 1 else 1.0

    cluster = FakeCluster(2, trouble)
    notes: list[str] = []
    crew = crew_of(cluster, notes, least=20.0, first=500.0)
    scored(crew, plans)
    hangs["now"] = True
    begun = cluster.now
    assert scored(crew, plans) == [None] * len(plans)
    assert 20 <= cluster.now - begun < 40
    assert [worker.number for worker in cluster.stopped] == [1]
    assert "it took more than 20 seconds for its part of the work" in notes[0]


def test_workers_that_join_are_used_and_those_that_are_gone_are_not_missed(plans: list[Plan]) -> None:
    cluster = FakeCluster(1)
    crew = crew_of(cluster)
    scored(crew, plans)
    cluster.size = 3
    for rung in range(3):
        scored(crew, plans, rung)
    assert len(cluster.started) == 3
    assert all(worker.asked for worker in cluster.started)


def test_one_sentence_when_no_worker_starts(plans: list[Plan]) -> None:
    cluster = FakeCluster(2, lambda worker, part: WorkerLostError("FamilyError: base is not there"))
    with pytest.raises(
        ScoringError, match=f"all workers are lost, and {FAILED_STARTS} in a row did not start;"
    ):
        scored(crew_of(cluster), plans)
    assert len(cluster.started) <= FAILED_STARTS + 1
    assert cluster.now > 3  # between starts that fail there is time


def test_one_sentence_when_all_are_gone_and_nothing_answers(plans: list[Plan]) -> None:
    cluster = FakeCluster(1, lambda worker, part: 1.0 if worker == 0 and not part else 1e9)
    with pytest.raises(ScoringError, match="all workers are lost"):
        scored(crew_of(cluster, first=50.0, start=100.0), plans)


def test_a_fit_whose_worker_is_lost_is_done_again(plans: list[Plan]) -> None:
    """The first worker dies while it fits, and the third hangs for much longer than the others took."""

    def trouble(worker: int, part: Sequence[Plan]) -> Any:
        return {0: WorkerLostError("memory ran out"), 2: 1e9}.get(worker, 1.0)

    cluster = FakeCluster(3, trouble_in_fits=trouble)
    notes: list[str] = []
    crew = Crew(cluster, fit_patience=Patience(least=20.0), progress=notes.append, clock=lambda: cluster.now)
    fits = crew.fit("stage", b"", plans)
    assert [fit.fitted for fit in fits] == [Fitted(plan, tokens=len(plan.slots)) for plan in plans]
    assert notes == [
        "note: a worker was lost (memory ran out); what it was fitting is fitted again",
        "note: a worker was lost (it took more than 20 seconds for its part of the work); "
        "what it was fitting is fitted again",
    ]
    assert all(asked == 1 for worker in cluster.started for asked in worker.asked)


def test_a_fit_that_no_worker_survives_fails_and_the_others_do_not(plans: list[Plan]) -> None:
    deadly = plans[2]
    cluster = FakeCluster(
        2, trouble_in_fits=lambda worker, part: WorkerLostError("died") if deadly in part else 1.0
    )
    fits = [fit.fitted for fit in crew_of(cluster).fit("stage", b"", plans)]
    assert fits.pop(2) == Fitted(deadly, cause="2 workers were lost while they fitted it; the last: died")
    assert [fit.cause for fit in fits] == [None] * (len(plans) - 1)
    assert len(cluster.stopped) == 2
