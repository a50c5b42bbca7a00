"""The base of the objectives on tasks, whether answers are scored by likelihood or generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.digests import digest
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.protocols import UnitSet
from gptailor_merge.objectives.tasks.metric import Metric
from gptailor_merge.objectives.tasks.task_items import TaskItems


class TaskObjective:
    """An objective that is a metric of tasks.

    Attributes:
        kind: how answers are got; part of the fingerprint.
        metric: the same for all tasks.
        sets: a set for each task.
        items: set name -> the items.
    """

    kind: ClassVar[str]
    metric: Metric
    sets: tuple[TokenSet | UnitSet, ...]
    items: Mapping[str, TaskItems]

    @property
    def direction(self) -> str:
        """ "maximize" or "minimize", of the natural value."""
        return self.metric.direction

    @property
    def fingerprint(self) -> str:
        """Depends on the metric, the requests, and what the items ask and hold to be right."""
        parts = [(items.recorded_digest, self.items[items.name].content) for items in self.sets]
        return digest([self.kind, self.metric.name, parts])


def common_metric(items: Sequence[TaskItems], name: str | None) -> Metric:
    """Returns the metric that tasks share.

    Args:
        items: of each task.
        name: see metric.metric_of.

    Raises:
        ConfigError: a task has no such metric, or tasks differ in it.
    """
    metrics = {of_task.metric(name) for of_task in items}
    if len(metrics) > 1:
        names = sorted({f"{metric.name} ({metric.unit})" for metric in metrics})
        raise ConfigError(
            f"the tasks differ in their metric: {', '.join(names)}; expected one objective for each"
        )
    (metric,) = metrics
    return metric
