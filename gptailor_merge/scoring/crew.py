"""Scores rungs on workers elsewhere, and replaces those that die, run out of memory or hang.

A worker keeps nothing that is not known here: what it was scoring when it was lost is scored again by
another. Its plans then go out one by one, so that one that no worker survives is found: it has failed after
the second worker that was lost with it alone.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gptailor_merge.composing.prefixes import path_of
from gptailor_merge.errors import ScoringError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.dividing import cost, divide
from gptailor_merge.scoring.generation import RungResult
from gptailor_merge.scoring.workplace import ScoredSection

LOST_WITH_A_PLAN = 2
"""A plan has failed when so many workers were lost while they scored it and nothing else."""


FAILED_STARTS = 5
"""Workers in a row that may fail to start while no other is there."""


STARTING_AT_ONCE = 8
"""Workers that start at the same time: a start reads a whole family from a disk that they may share."""


SLOWEST_RETRY = 60.0
"""Seconds between two starts at most, where starts fail."""


class WorkerLostError(Exception):
    """A worker is gone; its message is a sentence.

    Attributes:
        with_its_node: True if its whole machine is, so that no plan is to blame.
    """

    def __init__(self, message: str, *, with_its_node: bool = False) -> None:
        super().__init__(message)
        self.with_its_node = with_its_node


class Cluster(Protocol):
    """Starts workers and carries messages to them; Ray's actors are such workers.

    A ticket stands for an answer to come.
    """

    def wanted(self) -> int:
        """Returns how many workers there should be now, at least 1."""

    def start(self) -> tuple[Hashable, Hashable]:
        """Begins to start a worker; returns it, and the ticket that it answers when it can score."""

    def score(
        self, worker: Hashable, section: ScoredSection, rungs: range, plans: Sequence[Plan]
    ) -> Hashable:
        """Lets a worker score plans on some rungs and returns the ticket for a RungResult of each."""

    def first_answered(self, tickets: Sequence[Hashable], seconds: float) -> Hashable | None:
        """Waits for an answer to one of any number of tickets; returns its ticket, or None if none came."""

    def answer(self, ticket: Hashable) -> Any:
        """Returns an answer that has come.

        Raises:
            WorkerLostError: the worker is gone.
        """

    def stop(self, worker: Hashable) -> None:
        """Ends a worker, also one that hangs or is gone."""


@dataclass(frozen=True)
class Patience:
    """How long a worker may take, in seconds.

    Attributes:
        start: until it can score.
        first: for a part of a rung as long as none was measured.
        least: for any part.
        factor: times what the part should take by the slowest part of its rung that was measured.
    """

    start: float = 1800.0
    first: float = 3600.0
    least: float = 120.0
    factor: float = 10.0


@dataclass(frozen=True)
class _Task:
    """Plans of a rung that a worker scores together, by their positions."""

    positions: tuple[int, ...]
    layers: int


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
        progress: Callable[[str], None] = lambda step: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            progress: told of each worker that is lost.
            clock: returns seconds.
        """
        self.lost = 0
        self._cluster, self._patience = cluster, patience
        self._progress, self._clock = progress, clock
        self._members: list[_Member] = []
        self._failed_starts = 0
        self._next_start = -float("inf")
        self._slowest: dict[tuple[ScoredSection, int], float] = {}

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
        return _Rung(self, section, rungs, plans).run()

    def recruit(self) -> None:
        """Starts workers as long as there should be more."""
        now = self._clock()
        while len(self._members) < self.size and now >= self._next_start:
            if sum(not member.is_open for member in self._members) >= STARTING_AT_ONCE:
                return
            worker, ticket = self._cluster.start()
            self._members.append(_Member(worker, ticket, now, now + self._patience.start))

    def hand_out(self, tasks: deque[_Task], rung: _Rung) -> None:
        """Gives tasks to workers that are idle."""
        for member in self._members:
            if member.is_open and member.ticket is None and tasks:
                task = tasks.popleft()
                member.task, member.begun = task, self._clock()
                member.due = member.begun + self._most_seconds(rung.key, task)
                member.ticket = self._cluster.score(member.worker, *rung.key, rung.plans_of(task))

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
                doing = "to start" if member.task is None else "for its part of a generation"
                taken = self._clock() - member.begun
                return member, WorkerLostError(f"it took more than {taken:.0f} seconds {doing}")
        return None

    def opened(self, member: _Member) -> None:
        """Notes that a worker can score."""
        member.is_open, member.ticket = True, None
        self._failed_starts = 0

    def finished(self, member: _Member, key: tuple[ScoredSection, int]) -> _Task:
        """Returns the task that a worker has finished, which is idle now, and notes how long it took."""
        task = member.task
        assert task is not None
        slowness = (self._clock() - member.begun) / task.layers
        self._slowest[key] = max(self._slowest.get(key, 0.0), slowness)
        member.task = member.ticket = None
        return task

    def dismiss(self, member: _Member, error: WorkerLostError) -> None:
        """Removes a worker that is lost.

        Raises:
            ScoringError: it was the last one, and others have not started either.
        """
        self.lost += 1
        self._members.remove(member)
        self._cluster.stop(member.worker)
        if member.is_open:
            self._progress(f"note: a worker was lost ({error}); what it was scoring is scored again")
            return
        self._failed_starts += 1
        self._next_start = self._clock() + min(SLOWEST_RETRY, 2.0 ** (self._failed_starts - 1) - 1)
        has_none = not any(each.is_open for each in self._members)
        if has_none and (self._failed_starts >= FAILED_STARTS or self._clock() >= member.due):
            raise ScoringError(
                f"all workers are lost, and {self._failed_starts} in a row did not start; the last: {error}"
            )

    def _most_seconds(self, key: tuple[ScoredSection, int], task: _Task) -> float:
        slowest = self._slowest.get(key)
        if slowest is None:
            return self._patience.first
        return max(self._patience.least, self._patience.factor * slowest * task.layers)


class _Rung:
    """Rungs of a generation while the crew scores them together."""

    def __init__(self, crew: Crew, section: ScoredSection, rungs: range, plans: Sequence[Plan]) -> None:
        self.key = (section, rungs)
        self._crew, self._plans = crew, plans
        self._paths = [path_of(plan) for plan in plans]
        self._results: dict[int, RungResult] = {}
        self._lost_with: Counter[int] = Counter()
        self._tasks: deque[_Task] = deque()

    def run(self) -> list[RungResult]:
        """Returns the results in the order of the plans."""
        crew = self._crew
        crew.recruit()
        self._tasks.extend(map(self._task, divide(self._paths, crew.size)))
        while len(self._results) < len(self._plans):
            crew.recruit()
            crew.hand_out(self._tasks, self)
            answered = crew.wait()
            if answered is not None:
                self._take(*answered)
        return [self._results[position] for position in range(len(self._plans))]

    def plans_of(self, task: _Task) -> list[Plan]:
        """Returns the plans of a task."""
        return [self._plans[position] for position in task.positions]

    def _take(self, member: _Member, answer: Any) -> None:
        crew, task = self._crew, member.task
        if isinstance(answer, WorkerLostError):
            if task is not None:
                self._tasks.extendleft(self._again(task, answer))
            crew.dismiss(member, answer)
        elif task is None:
            crew.opened(member)
        else:
            self._results.update(zip(crew.finished(member, self.key).positions, answer, strict=True))

    def _again(self, task: _Task, error: WorkerLostError) -> Iterable[_Task]:
        """Yields the tasks that replace one whose worker was lost."""
        if len(task.positions) == 1 and not error.with_its_node:
            (position,) = task.positions
            self._lost_with[position] += 1
            if self._lost_with[position] >= LOST_WITH_A_PLAN:
                cause = f"{LOST_WITH_A_PLAN} workers were lost while they scored it; the last: {error}"
                self._results[position] = RungResult({}, cause, 0.0, 0)
                return
        for position in task.positions:
            yield self._task([position])

    def _task(self, positions: Sequence[int]) -> _Task:
        return _Task(tuple(positions), cost([self._paths[position] for position in positions]))
