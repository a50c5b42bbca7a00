"""Scores and refines plans on workers elsewhere, and replaces those that die, run out of memory or hang.

A worker keeps nothing that is not known here: what it was doing when it was lost is done again by another.
Its plans then go out one by one, so that one that no worker survives is found: it has failed after the
second worker that was lost with it alone.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor_merge.composing.prefixes import path_of
from gptailor_merge.errors import ScoringError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.cluster import Cluster, WorkerLostError
from gptailor_merge.scoring.dividing import cost, divide
from gptailor_merge.scoring.finalist_fits import Fitted, SentFit
from gptailor_merge.scoring.generation import RungResult
from gptailor_merge.scoring.workplace import ScoredSection

LOST_WITH_A_PLAN = 2
"""A plan has failed when so many workers were lost while they scored or refined it and nothing else."""


FAILED_STARTS = 5
"""Workers in a row that may fail to start while no other is there."""


STARTING_AT_ONCE = 8
"""Workers that start at the same time: a start reads a whole family from a disk that they may share."""


SLOWEST_RETRY = 60.0
"""Seconds between two starts at most, where starts fail."""


@dataclass(frozen=True)
class Patience:
    """How long a worker may take, in seconds.

    Attributes:
        start: until it can score.
        first: for a part of some work as long as none was measured.
        least: for any part.
        factor: times what the part should take by the slowest part of the work that was measured.
    """

    start: float = 1800.0
    first: float = 3600.0
    least: float = 120.0
    factor: float = 10.0


FIT_PATIENCE = Patience(first=6 * 3600.0, least=600.0, factor=50.0)
"""How long a fit may take: a plan with many cuts takes many times as long as one that has a single cut."""


@dataclass(frozen=True)
class _Work:
    """Something that is done to plans, in parts.

    Attributes:
        key: tells works apart whose parts take other times.
        plans: all plans.
        cost: returns what plans cost together that one worker is given.
        send: gives a worker plans, and returns the ticket for an answer to each.
        failed: returns the answer to a plan that no worker survives, from the cause.
        doing, done: say what is done to the plans, as participles.
    """

    key: Hashable
    plans: Sequence[Plan]
    patience: Patience
    cost: Callable[[Sequence[Plan]], int]
    send: Callable[[Hashable, Sequence[Plan]], Hashable]
    failed: Callable[[str, Plan], Any]
    doing: str
    done: str


@dataclass(frozen=True)
class _Task:
    """Plans that a worker is given together, by their positions, and what they cost."""

    positions: tuple[int, ...]
    cost: int


@dataclass(eq=False)
class _Member:
    """A worker, and what it is doing.

    Attributes:
        ticket: of its start or its task; None if it is idle.
        task: None while it starts and while it is idle.
        begun, due: when that was begun, and when it counts as hanging.
    """

    worker: Hashable
    ticket: Hashable | None
    begun: float
    due: float
    task: _Task | None = None
    is_open: bool = False


class Crew:
    """The workers of a run.

    Attributes:
        lost: how many workers were lost so far.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        patience: Patience = Patience(),
        fit_patience: Patience = FIT_PATIENCE,
        progress: Callable[[str], None] = lambda step: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            progress: told of each worker that is lost.
            clock: returns seconds.
        """
        self.lost = 0
        self._cluster, self._patience, self._fit_patience = cluster, patience, fit_patience
        self._progress, self._clock = progress, clock
        self._members: list[_Member] = []
        self._failed_starts = 0
        self._next_start = -float("inf")
        self._slowest: dict[Hashable, float] = {}

    @property
    def size(self) -> int:
        """The number of workers that there should be now."""
        return self._cluster.wanted()

    def close(self) -> None:
        """Ends all workers."""
        for member in self._members:
            self._cluster.stop(member.worker)
        self._members.clear()

    def score_rungs(self, section: ScoredSection, rungs: range, plans: Sequence[Plan]) -> list[RungResult]:
        """Returns what the plans have on the batches of the rungs together, in their order.

        Raises:
            ScoringError: no worker is left, and none starts.
        """
        work = _Work(
            key=(section, rungs),
            plans=plans,
            patience=self._patience,
            cost=lambda part: cost([path_of(plan) for plan in part]),
            send=lambda worker, part: self._cluster.score(worker, section, rungs, part),
            failed=lambda cause, plan: RungResult({}, cause, 0.0, 0),
            doing="scoring",
            done="scored",
        )
        return _Dispatch(self, work).run(divide([path_of(plan) for plan in plans], self.size))

    def share(self, content: bytes) -> Any:
        """Makes bytes available to all workers, and returns what stands for them."""
        return self._cluster.share(content)

    def fit(self, stage: Hashable, fitting: Any, plans: Sequence[Plan]) -> list[SentFit]:
        """Returns what becomes of plans that are refined, each by one worker, in their order.

        Args:
            stage: the same for fits that take about equally long.
            fitting: stands for a Fitting, as torch.save writes it; see `share`.

        Raises:
            ScoringError: no worker is left, and none starts.
        """
        work = _Work(
            key=stage,
            plans=plans,
            patience=self._fit_patience,
            cost=len,
            send=lambda worker, part: self._cluster.fit(worker, fitting, part),
            failed=lambda cause, plan: SentFit(Fitted(plan, cause=cause)),
            doing="fitting",
            done="fitted",
        )
        return _Dispatch(self, work).run([position] for position in range(len(plans)))

    def recruit(self) -> None:
        """Starts workers as long as there should be more."""
        now = self._clock()
        while len(self._members) < self.size and now >= self._next_start:
            if sum(not member.is_open for member in self._members) >= STARTING_AT_ONCE:
                return
            worker, ticket = self._cluster.start()
            self._members.append(_Member(worker, ticket, now, now + self._patience.start))

    def hand_out(self, tasks: deque[_Task], work: _Work) -> None:
        """Gives tasks to workers that are idle."""
        for member in self._members:
            if member.is_open and member.ticket is None and tasks:
                task = tasks.popleft()
                member.task, member.begun = task, self._clock()
                member.due = member.begun + self._most_seconds(work, task)
                member.ticket = work.send(member.worker, [work.plans[at] for at in task.positions])

    def wait(self) -> tuple[_Member, Any] | None:
        """Waits for the next answer, and returns who gave it; None if it is time to look after all.

        The answer is a WorkerLostError if the worker is gone or hangs.
        """
        busy = {member.ticket: member for member in self._members if member.ticket is not None}
        soon = min((member.due for member in busy.values()), default=self._next_start)
        if len(self._members) < self.size:
            soon = min(soon, self._next_start)
        ticket = self._cluster.first_answered(list(busy), max(0.01, min(soon - self._clock(), 1.0)))
        if ticket is not None:
            member = busy[ticket]
            try:
                return member, self._cluster.answer(ticket)
            except WorkerLostError as error:
                return member, error
        for member in busy.values():
            if self._clock() >= member.due:
                doing = "to start" if member.task is None else "for its part of the work"
                taken = self._clock() - member.begun
                return member, WorkerLostError(f"it took more than {taken:.0f} seconds {doing}")
        return None

    def opened(self, member: _Member) -> None:
        """Notes that a worker can score."""
        member.is_open, member.ticket = True, None
        self._failed_starts = 0

    def finished(self, member: _Member, work: _Work) -> _Task:
        """Returns the task that a worker has finished, which is idle now, and notes how long it took."""
        task = member.task
        assert task is not None
        slowness = (self._clock() - member.begun) / task.cost
        self._slowest[work.key] = max(self._slowest.get(work.key, 0.0), slowness)
        member.task = member.ticket = None
        for other in self._members:
            if other.task is not None:
                other.due = other.begun + self._most_seconds(work, other.task)
        return task

    def dismiss(self, member: _Member, error: WorkerLostError, work: _Work) -> None:
        """Removes a worker that is lost.

        Raises:
            ScoringError: it was the last one, and others have not started either.
        """
        self.lost += 1
        self._members.remove(member)
        self._cluster.stop(member.worker)
        if member.is_open:
            again = f"what it was {work.doing} is {work.done} again"
            self._progress(f"note: a worker was lost ({error}); {again}")
            return
        self._failed_starts += 1
        self._next_start = self._clock() + min(SLOWEST_RETRY, 2.0 ** (self._failed_starts - 1) - 1)
        has_none = not any(each.is_open for each in self._members)
        if has_none and (self._failed_starts >= FAILED_STARTS or self._clock() >= member.due):
            raise ScoringError(
                f"all workers are lost, and {self._failed_starts} in a row did not start; the last: {error}"
            )

    def _most_seconds(self, work: _Work, task: _Task) -> float:
        slowest, patience = self._slowest.get(work.key), work.patience
        if slowest is None:
            return patience.first
        return max(patience.least, patience.factor * slowest * task.cost)


class _Dispatch:
    """Some work while the crew does it."""

    def __init__(self, crew: Crew, work: _Work) -> None:
        self._crew, self._work = crew, work
        self._answers: dict[int, Any] = {}
        self._lost_with: Counter[int] = Counter()
        self._tasks: deque[_Task] = deque()

    def run(self, parts: Iterable[Sequence[int]]) -> list[Any]:
        """Does the work and returns the answers in the order of the plans.

        Args:
            parts: positions of the plans that a worker is given together.
        """
        crew, plans = self._crew, self._work.plans
        crew.recruit()
        self._tasks.extend(map(self._task, parts))
        while len(self._answers) < len(plans):
            crew.recruit()
            crew.hand_out(self._tasks, self._work)
            answered = crew.wait()
            if answered is not None:
                self._take(*answered)
        return [self._answers[position] for position in range(len(plans))]

    def _take(self, member: _Member, answer: Any) -> None:
        crew, task = self._crew, member.task
        if isinstance(answer, WorkerLostError):
            if task is not None:
                self._tasks.extendleft(self._again(task, answer))
            crew.dismiss(member, answer, self._work)
        elif task is None:
            crew.opened(member)
        else:
            self._answers.update(zip(crew.finished(member, self._work).positions, answer, strict=True))

    def _again(self, task: _Task, error: WorkerLostError) -> Iterable[_Task]:
        """Yields the tasks that replace one whose worker was lost."""
        work = self._work
        if len(task.positions) == 1 and not error.with_its_node:
            (position,) = task.positions
            self._lost_with[position] += 1
            if self._lost_with[position] >= LOST_WITH_A_PLAN:
                cause = f"{LOST_WITH_A_PLAN} workers were lost while they {work.done} it; the last: {error}"
                self._answers[position] = work.failed(cause, work.plans[position])
                return
        for position in task.positions:
            yield self._task([position])

    def _task(self, positions: Sequence[int]) -> _Task:
        return _Task(tuple(positions), self._work.cost([self._work.plans[at] for at in positions]))
