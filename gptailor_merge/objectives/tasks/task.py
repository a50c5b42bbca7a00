"""The kind `task`: the config of a metric of lm-eval's tasks, and how it is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import Self

from gptailor_merge.calibration.held_back import EVERY
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.errors import ConfigError, DataError, KeyPath, Problem
from gptailor_merge.objectives.config_types import Positive, located
from gptailor_merge.objectives.kinds import (
    Context,
    ObjectiveConfig,
    PreparedObjective,
    SplitItems,
    Weight,
)
from gptailor_merge.objectives.tasks.generated_answers import TaskGeneration, generation_objective
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.likelihood import TaskLikelihood, likelihood_objective, takes_trees
from gptailor_merge.objectives.tasks.metric import SMOOTH
from gptailor_merge.objectives.tasks.task_items import TaskItems, TaskSettings, load_items, splits_of


class TaskConfig(ObjectiveConfig):
    """A metric of lm-eval's tasks.

    Attributes:
        tasks: names of tasks or groups.
        include_path: a directory with further tasks, YAML files of lm-eval.
        split: of the tasks' data; by default the search does not take a test split where there is
            another, and the held-out set does.
        few_shot: examples before each item; default as the tasks have it.
        chat_template: put items as messages of a chat.
        limit: most items taken of each task, chosen by the seed.
        metric: one of lm-eval's, or margin or choice_loss; default the tasks' first.
    """

    kind: Literal["task"]
    tasks: tuple[str, ...] = Field(min_length=1, strict=False)
    include_path: str | None = None
    split: str | None = None
    few_shot: Annotated[int, Field(ge=0)] | None = None
    chat_template: bool = False
    limit: Positive | None = None
    metric: str | None = None
    weight: Weight = 1.0

    source_key: ClassVar[str | None] = "tasks"
    has_items: ClassVar[bool] = True

    def prepare(self, context: Context) -> PreparedObjective:
        """Loads the items; objectives with the same settings share them.

        Raises:
            ConfigError: an unknown task, split or metric, or a task that no search can answer.
            DataError: the data cannot be loaded.
        """
        items, trees = self._items(context)
        objective = objective_of(items, self.metric, trees=trees, lm=_encoder(context))
        return PreparedObjective.ready(
            objective, tuple(SplitItems(i.name, i.split, i.is_test, i.ids) for i in items)
        )

    @property
    def has_gradient(self) -> bool:
        """True for the smooth metrics."""
        return self.metric in SMOOTH

    def divided(
        self, context: Context, texts: tuple[TokenSet, ...]
    ) -> tuple[PreparedObjective, PreparedObjective]:
        """Returns the objective on three of four items of each task, and on every fourth."""
        if not self.has_gradient:
            raise ConfigError(f"tasks have a gradient by the metrics {' and '.join(SMOOTH)} alone")
        items, trees = self._items(context)
        fitted, held_back = divided_items(items)
        lm = _encoder(context)
        return (
            PreparedObjective.ready(objective_of(fitted, self.metric, trees=trees, lm=lm)),
            PreparedObjective.ready(objective_of(held_back, self.metric, trees=trees, lm=lm)),
        )

    def _items(self, context: Context) -> tuple[list[TaskItems], bool]:
        """Returns the items, and whether the base model takes several texts in a row."""
        settings = replace(self._settings(context), divided=context.divided, without=context.without)
        return context.once(("task", settings), lambda: _load(settings, context))

    def sentence(self) -> str:
        """Names the metric and the tasks; the card names the items that the run recorded instead."""
        return f"{self.metric or 'the first metric'} on {', '.join(self.tasks)}"

    def problems(self, path: KeyPath, directory: Path, members: Sequence[str]) -> list[Problem]:
        """Returns a problem where include_path is no directory."""
        where = self.include_path
        if where is None or located(where, directory).is_dir():
            return []
        message = f"no such directory, found {where!r}; looked for {located(where, directory)}"
        return [Problem((*path, "include_path"), message)]

    def resolved(self, directory: Path) -> Self:
        """Returns the config with an absolute include_path."""
        if self.include_path is None:
            return self
        return self.model_copy(update={"include_path": str(located(self.include_path, directory))})

    def splits(self, context: Context) -> Mapping[str, str]:
        """Returns task -> split.

        Raises:
            ConfigError: an unknown task or split.
            DataError: the data cannot be loaded.
        """
        return splits_of(self._settings(context))

    @classmethod
    def reported_besides(cls, searched: Sequence[Self], held_out: Sequence[Self]) -> Sequence[Self]:
        """Returns the tasks that are searched on and not held out by the same metric.

        A task is reported by the metric that is searched on, and where that is a smooth one also by its
        first. Tasks that differ in nothing but their names become one objective.
        """
        added: dict[Self, list[str]] = {}
        for config in searched:
            metrics = (config.metric, None) if config.metric in SMOOTH else (config.metric,)
            for metric in metrics:
                for task in config.tasks:
                    entries = [entry for entry in held_out if task in entry.tasks]
                    if any(entry.metric == metric for entry in entries):
                        continue
                    like = entries[0] if entries else config.model_copy(update={"split": None})
                    added.setdefault(like.model_copy(update={"metric": metric, "tasks": ()}), []).append(task)
        return [
            config.model_copy(update={"tasks": tuple(dict.fromkeys(tasks))})
            for config, tasks in added.items()
        ]

    @classmethod
    def shared_settings(cls, configs: Sequence[Self], versions: Mapping[str, str]) -> Sequence[str]:
        """Returns lm-eval's version and the settings that all tasks of a section have."""
        return list(_shared_settings(configs, versions.get("lm-eval")))

    def _settings(self, context: Context) -> TaskSettings:
        return TaskSettings(
            tasks=self.tasks,
            include_path=Path(self.include_path) if self.include_path else None,
            split=self.split,
            few_shot=self.few_shot,
            chat_template=self.chat_template,
            limit=self.limit,
            purpose=context.purpose,
            seed=context.seed,
        )


def objective_of(
    items: Sequence[TaskItems], metric: str | None, *, trees: bool, lm: Any, batch_size: int = 16
) -> TaskLikelihood | TaskGeneration:
    """Makes the objective that is a metric of tasks.

    Args:
        items: of each task.
        metric: see metric.metric_of.
        trees: see likelihood.takes_trees.
        lm: see harness.encoder.
        batch_size: answers that are generated together.

    Raises:
        ConfigError: a task has no such metric, tasks differ in it, or answers are generated in some only.
    """
    generating = [of_task.name for of_task in items if of_task.generates]
    if generating and len(generating) < len(items):
        raise ConfigError(
            f"answers are generated in {', '.join(generating)} only; "
            "expected an objective of their own for them"
        )
    if generating:
        return generation_objective(items, metric, lm, batch_size=batch_size)
    return likelihood_objective(items, metric, trees=trees)


def divided_items(items: Sequence[TaskItems]) -> tuple[list[TaskItems], list[TaskItems]]:
    """Returns the items of each task that are fitted to, and those that are held back.

    Tasks with fewer than EVERY items are fitted to as a whole.

    Raises:
        DataError: no item can be held back.
    """
    large = [of_task for of_task in items if len(of_task.ids) >= EVERY]
    if not large:
        raise DataError(
            f"no task has {EVERY} items, every {EVERY}th of which is held back to tell what helps"
        )
    held_back = [of_task.part(range(EVERY - 1, len(of_task.ids), EVERY)) for of_task in large]
    kept = [
        [n for n in range(len(of_task.ids)) if of_task not in large or n % EVERY != EVERY - 1]
        for of_task in items
    ]
    return [of_task.part(numbers) for of_task, numbers in zip(items, kept, strict=True)], held_back


def _load(settings: TaskSettings, context: Context) -> tuple[list[TaskItems], bool]:
    """Returns the items, and whether the base model takes several texts in a row."""
    items = load_items(settings, _encoder(context))
    _, forward = context.teacher("base")
    return items, takes_trees(items, forward, context.device)


def _encoder(context: Context) -> Any:
    return context.once(("task", "encoder"), lambda: encoder(context.directory, context.tokenizer))


def _shared_settings(configs: Sequence[TaskConfig], harness: str | None) -> Iterator[str]:
    if harness:
        yield f"templates and metrics of lm-eval {harness}"
    for attribute, text in (("few_shot", "{}-shot"), ("limit", "at most {} items of each")):
        values = {getattr(config, attribute) for config in configs}
        if len(values) == 1 and None not in values:
            yield text.format(values.pop())
    if configs and all(config.chat_template for config in configs):
        yield "with the chat template"
