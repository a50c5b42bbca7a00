"""Answers that a model generates, before and after healing: these come back later than likelihoods do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gptailor_merge.errors import ConfigError, errors_at
from gptailor_merge.heal_config import HealSection
from gptailor_merge.objectives.tasks.harness import load_tasks, seeded, task_manager
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.live_models import LiveModel
from gptailor_merge.scoring.task_scores import LmEvalSettings, run_tasks
from gptailor_merge.scoring.workplace import Workplace

METRIC = "exact_match"
"""The metric of lm-eval that is compared; of a task with several filters, by the first."""


def check_tasks(section: HealSection) -> tuple[str, ...]:
    """Returns the names of the tasks that `generate` comes to, groups resolved.

    Raises:
        ConfigError: an unknown task, or one without generated answers that match exactly or do not.
        DataError: the data of a task cannot be loaded.
    """
    if not section.generate:
        return ()
    with errors_at(("heal", "generate")):
        tasks = load_tasks(section.generate, _directory(section))
        for name, task in tasks.items():
            if task.OUTPUT_TYPE != "generate_until" or METRIC not in task.aggregation():
                raise ConfigError(f"expected tasks with generated answers and {METRIC}, found {name!r}")
    return tuple(tasks)


def exact_matches(workplace: Workplace, plans: Iterable[Plan]) -> dict[str, tuple[float, ...]]:
    """Returns task -> for each plan the share of generated answers that match exactly.

    Raises:
        ConfigError, DataError: see check_tasks.
        ScoringError: lm-eval could not run a task.
    """
    section = workplace.config.heal
    names, directory = check_tasks(section), _directory(section)
    settings = LmEvalSettings(section.generate, directory, section.limit)
    manager = task_manager(section.generate, directory)
    shares: dict[str, tuple[float, ...]] = dict.fromkeys(names, ())
    for plan in plans:
        tokenizer = workplace.family.by_model(plan.tokenizer).directory
        with seeded():
            scores = run_tasks(LiveModel(workplace.composer.compose(plan), tokenizer), settings, manager)
        for name in names:
            by_filter = [score for key, score in scores[name].items() if key.partition(",")[0] == METRIC]
            shares[name] += (by_filter[0].value,)
    return shares


def _directory(section: HealSection) -> Path | None:
    return None if section.include_path is None else Path(section.include_path)
