"""lm-eval's tasks on dense models and on recipes, and what a recipe retains of its family's scores.

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
from transformers import PreTrainedModel

from gptailor_merge.errors import ConfigError, ScoringError
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.tasks.harness import task_manager
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.model_scores import open_model


@dataclass(frozen=True)
class EvaluationSettings:
    """How the tasks are run; None and False leave a task as its config has it.

    Attributes:
        tasks: names that lm-eval knows, or that a YAML file in `include_path` gives.
        limit: so many items of each task, from its first.
        few_shot: examples before each item.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    few_shot: int | None = None
    chat_template: bool = False
    batch_size: int = 16


@dataclass(frozen=True)
class Measure:
    """A metric of a task, as lm-eval aggregates it; `error` is its standard error, where it has one.

    Attributes:
        direction: "maximize" or "minimize".
        items: that it was measured on.
    """

    value: float
    error: float | None
    direction: str
    items: int


Measures = Mapping[str, Mapping[str, Measure]]
"""Task or group -> metric -> measure."""


@dataclass(frozen=True)
class Evaluation:
    """The measures of several models.

    Attributes:
        base: name of the base model among `models`, or None where one model stands alone.
        members: names of the dense members among `models`.
    """

    models: Mapping[str, Measures]
    base: str | None
    members: tuple[str, ...]

    def retained(self, model: str, task: str, metric: str) -> tuple[float, float] | None:
        """Percent of the base's score, and of the best member's.

        100 · score / reference of a metric that is better the higher, 100 · reference / score of
        one that is better the lower. None for members, and where a divisor is zero.
        """
        if self.base is None or model in self.members:
            return None
        measure = self.models[model][task][metric]
        of_members = {name: self.models[name][task][metric].value for name in self.members}
        maximize = measure.direction == "maximize"
        best = (max if maximize else min)(of_members.values())
        references = (of_members[self.base], best)
        if not (all(references) if maximize else measure.value):
            return None
        of_base, of_best = (
            100 * (measure.value / reference if maximize else reference / measure.value)
            for reference in references
        )
        return of_base, of_best

    def to_json(self) -> dict[str, Any]:
        """As `gptailor eval --json` prints it."""
        return {
            model: {
                task: {metric: self._row(model, task, metric, m) for metric, m in metrics.items()}
                for task, metrics in measures.items()
            }
            for model, measures in self.models.items()
        }

    def _row(self, model: str, task: str, metric: str, measure: Measure) -> dict[str, Any]:
        retained = self.retained(model, task, metric)
        percents = {"of_base": retained[0], "of_best_member": retained[1]} if retained else {}
        return {**asdict(measure), **percents}


def evaluate(
    path: Path,
    settings: EvaluationSettings,
    device: torch.device,
    *,
    progress: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """Run tasks on a model directory, or on a recipe and all members that it names.

    Raises:
        ConfigError: an unknown task.
        ScoringError: lm-eval could not run a task.
    """
    manager = task_manager(settings.tasks, settings.include_path)
    if path.is_dir():
        progress(f"evaluating {path}")
        return Evaluation({path.name: _measure(*open_model(path, device), settings, manager)}, None, ())
    recipe = Recipe.load(path)
    if settings.chat_template and recipe.chat_template is not None:
        message = "the recipe has a chat template of its own, which mergekit puts into the written model"
        raise ConfigError(
            f"--chat-template: {message}; write it with gptailor merge and evaluate that", file=path
        )
    progress(f"evaluating {path}")
    models = {path.name: _measure(*open_model(path, device), settings, manager)}
    for name in recipe.models:
        gc.collect()
        progress(f"evaluating {name}")
        directory = Family.load(name, {}).base.directory
        models[name] = _measure(*open_model(directory, device), settings, manager)
    return Evaluation(models, recipe.base_model, tuple(recipe.models))


def _measure(model: PreTrainedModel, directory: Path, settings: EvaluationSettings, manager: Any) -> Measures:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    live = HFLM(pretrained=model, tokenizer=load_tokenizer(directory), batch_size=settings.batch_size)
    try:
        results = simple_evaluate(
            model=live,
            tasks=list(settings.tasks),
            num_fewshot=settings.few_shot,
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            task_manager=manager,
            log_samples=False,
        )
    except Exception as error:  # tasks raise what their data and their own code raise
        raise ScoringError(f"lm-eval: {type(error).__name__}: {error}") from error
    return _measures(results)


def _measures(results: Any) -> Measures:
    """What lm-eval found: "acc,none" and "acc_stderr,none" become one measure "acc"."""
    found: dict[str, dict[str, Measure]] = {}
    for task, row in results["results"].items():
        for key, value in row.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = row.get(f"{metric}_stderr,{filter_name}")
            higher = results["higher_is_better"].get(task, {}).get(metric)
            items = results["n-samples"].get(task, {}).get("effective", 0)
            found.setdefault(task, {})[metric if filter_name == "none" else key] = Measure(
                float(value),
                float(error) if isinstance(error, (int, float)) else None,
                "minimize" if higher is False else "maximize",
                items,
            )
    return found
