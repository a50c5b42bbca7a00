"""Scores models and recipes on lm-eval's tasks, and tells what a recipe retains of its family's scores.

Everything is lm-eval's own: requests, few-shot examples, metrics, standard errors. A recipe is
composed in memory; nothing is written.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.errors import ConfigError, InputError, ScoringError
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.tasks.harness import harness_model_class, task_manager
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.live_models import LiveModel, open_member, open_model


@dataclass(frozen=True)
class LmEvalSettings:
    """Says which tasks are run and how; None and False leave a task as its config has it.

    Attributes:
        tasks: names that lm-eval knows, or that a YAML file in `include_path` defines.
        include_path: a directory with further tasks.
        limit: most items taken of each task, counted from its first.
        few_shot: examples before each item.
        chat_template: put the tokenizer's chat template around items.
        batch_size: requests that run together.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    few_shot: int | None = None
    chat_template: bool = False
    batch_size: int = 16


@dataclass(frozen=True)
class MetricScore:
    """A metric of a task, as lm-eval aggregates it.

    Attributes:
        value: the metric's value.
        error: its standard error, or None where lm-eval gives none.
        direction: "maximize" or "minimize".
        items: how many items it was measured on.
    """

    value: float
    error: float | None
    direction: str
    items: int


MetricsByTask = Mapping[str, Mapping[str, MetricScore]]
"""Task or group -> metric -> score."""


@dataclass(frozen=True)
class TaskScores:
    """The scores of one model, or of a recipe and all members that it names.

    Attributes:
        models: name of the recipe or model -> its scores.
        base: name of the base model among `models`, or None where one model stands alone.
        members: names of the dense members among `models`.
    """

    models: Mapping[str, MetricsByTask]
    base: str | None
    members: tuple[str, ...]

    def retained(self, model: str, task: str, metric: str) -> tuple[float, float] | None:
        """Returns the percentages of the base's score and of the best member's that a model retains.

        A metric that is better the higher gives 100 · score / reference, one that is better the lower
        100 · reference / score. None for members, and where a divisor is zero.
        """
        if self.base is None or model in self.members:
            return None
        score = self.models[model][task][metric]
        of_members = {name: self.models[name][task][metric].value for name in self.members}
        maximize = score.direction == "maximize"
        best = (max if maximize else min)(of_members.values())
        references = (of_members[self.base], best)
        if not (all(references) if maximize else score.value):
            return None
        of_base, of_best = (
            100 * (score.value / reference if maximize else reference / score.value)
            for reference in references
        )
        return of_base, of_best

    def to_json(self) -> dict[str, Any]:
        """Returns what `gptailor eval --json` prints."""
        return {
            model: {
                task: {metric: self._row(model, task, metric, score) for metric, score in metrics.items()}
                for task, metrics in by_task.items()
            }
            for model, by_task in self.models.items()
        }

    def _row(self, model: str, task: str, metric: str, score: MetricScore) -> dict[str, Any]:
        retained = self.retained(model, task, metric)
        percents = {"of_base": retained[0], "of_best_member": retained[1]} if retained else {}
        return {**asdict(score), **percents}


def score_on_tasks(
    path: Path,
    settings: LmEvalSettings,
    device: torch.device,
    *,
    progress: Callable[[str], None] = lambda step: None,
) -> TaskScores:
    """Runs tasks on a model directory, or on a recipe file and all members that the recipe names.

    Raises:
        ConfigError: an unknown task, or a chat template that only the written model would get.
        RecipeError, FamilyError: a recipe or model that is not sound.
        ScoringError: lm-eval could not run a task.
    """
    manager = task_manager(settings.tasks, settings.include_path)
    recipe = None if path.is_dir() else Recipe.load(path)
    if recipe is not None and settings.chat_template and recipe.chat_template is not None:
        message = "the recipe has a chat template of its own, which only the written model gets"
        raise ConfigError(
            f"--chat-template: {message}; write it with gptailor merge and evaluate that", file=path
        )
    progress(f"evaluating {path}")
    models = {path.name: run_tasks(open_model(path, device), settings, manager)}
    if recipe is None:
        return TaskScores(models, None, ())
    for name in recipe.models:
        gc.collect()
        progress(f"evaluating {name}")
        member = Family.load(name, {}).base
        models[name] = run_tasks(open_member(member, device), settings, manager)
    return TaskScores(models, recipe.base_model, tuple(recipe.models))


def run_tasks(live: LiveModel, settings: LmEvalSettings, manager: Any) -> MetricsByTask:
    """Runs tasks on a model.

    Args:
        manager: see harness.task_manager.

    Raises:
        ScoringError: lm-eval could not run a task.
    """
    from lm_eval import simple_evaluate

    harness_model = harness_model_class()(
        pretrained=live.model, tokenizer=live.load_tokenizer(), batch_size=settings.batch_size
    )
    try:
        results = simple_evaluate(
            model=harness_model,
            tasks=list(settings.tasks),
            num_fewshot=settings.few_shot,
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            task_manager=manager,
            log_samples=False,
        )
    except InputError:  # a chat template that cannot be rendered
        raise
    except Exception as error:  # tasks raise what their data and their code raise
        raise ScoringError(f"lm-eval: {type(error).__name__}: {error}") from error
    return _metrics_by_task(results)


def _metrics_by_task(results: Any) -> MetricsByTask:
    """Reads lm-eval's results: "acc,none" and "acc_stderr,none" become one score "acc"."""
    by_task: dict[str, dict[str, MetricScore]] = {}
    for task, row in results["results"].items():
        for key, value in row.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = row.get(f"{metric}_stderr,{filter_name}")
            higher = results["higher_is_better"].get(task, {}).get(metric)
            items = results["n-samples"].get(task, {}).get("effective", 0)
            by_task.setdefault(task, {})[metric if filter_name == "none" else key] = MetricScore(
                float(value),
                float(error) if isinstance(error, (int, float)) else None,
                "minimize" if higher is False else "maximize",
                items,
            )
    return by_task
