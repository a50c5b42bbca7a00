"""Refines the finalists of a stage side by side, one on each worker of a crew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gptailor_merge.scoring.cluster import sendable
from gptailor_merge.scoring.crew import Crew
from gptailor_merge.scoring.finalist_fits import FitTask, Fitted, Fitting, Progress, SentFit
from gptailor_merge.time_left import without_time_left


class CrewFitter:
    """Refines finalists on workers; those that are done together are as many as there are workers.

    So a process that is killed has lost one fit of each worker at most.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def fit(
        self, fitting: Fitting, tasks: Sequence[FitTask], begins: Callable[[int], None], progress: Progress
    ) -> Iterator[Sequence[Fitted]]:
        """Yields what becomes of the tasks; see Fitter. Their steps are told when all that go together end.

        Raises:
            ConfigError: what is fitted to cannot be sent.
        """
        crew, stage = self._crew, object()
        shared = crew.share(sendable(fitting, "fitted to"))
        done = 0
        while done < len(tasks):
            part = tasks[done : done + crew.size]
            for position in range(done, done + len(part)):
                begins(position)
            sent = crew.fit(stage, shared, [task.plan for task in part])
            yield from _received(part, sent, progress)
            done += len(part)


def _received(
    tasks: Sequence[FitTask], sent: Sequence[SentFit], progress: Progress
) -> Iterator[Sequence[Fitted]]:
    """Yields what has become of tasks up to the first that raised something, which is raised then."""
    fitted: list[Fitted] = []
    for task, fit in zip(tasks, sent, strict=True):
        for step in fit.steps:
            progress(f"{task.name}: {without_time_left(step)}")
        if fit.error is not None:
            if fitted:
                yield fitted
            raise fit.error
        fitted.append(fit.received(task.directory))
    yield fitted
