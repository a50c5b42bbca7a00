"""A recipe's task scores are those that lm-eval gives the written model."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml

from gptailor_merge.errors import ConfigError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.task_scores import LmEvalSettings, MetricScore, TaskScores, score_on_tasks
from tests.conftest import TASKS, recipe_of

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")


def test_the_composed_model_scores_as_the_written_one(
    family: Mapping[str, str], tasks: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yml"
    recipe = Recipe.from_mapping(recipe_of(dict(family)))
    file.write_text(recipe.to_yaml())
    materialize(recipe, tmp_path / "model", file=file)
    settings = LmEvalSettings(tuple(f"tiny_{name}" for name in TASKS), tasks)
    of_recipe = score_on_tasks(file, settings, CPU)
    of_model = score_on_tasks(tmp_path / "model", settings, CPU)
    assert of_recipe.models["recipe.yml"] == of_model.models["model"]
    assert set(of_model.models["model"]) == set(settings.tasks)
    assert of_recipe.members == recipe.models
    assert set(of_recipe.models) == {"recipe.yml", *recipe.models}
    assert of_model.models["model"]["tiny_rolling"]["word_perplexity"].direction == "minimize"
    assert of_model.models["model"]["tiny_choice"]["acc"].items == 12


def test_an_unknown_task_is_refused_before_a_model_is_looked_at(tasks: Path) -> None:
    with pytest.raises(ConfigError, match="knows no task, found 'tiny_choise'; did you mean 'tiny_choice'"):
        score_on_tasks(tasks / "no-model", LmEvalSettings(("tiny_choise",), tasks), CPU)


def test_a_chat_template_that_only_the_written_model_gets_is_refused(
    family: Mapping[str, str], tasks: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(recipe_of(dict(family), chat_template="chatml")))
    with pytest.raises(ConfigError, match="chat template of its own"):
        score_on_tasks(file, LmEvalSettings(("tiny_choice",), tasks, chat_template=True), CPU)


def task_scores(direction: str, recipe: float, base: float, variant: float) -> TaskScores:
    values = {"recipe": recipe, "base": base, "variant": variant}
    models = {name: {"t": {"m": MetricScore(v, None, direction, 5)}} for name, v in values.items()}
    return TaskScores(models, "base", ("base", "variant"))


def test_retained_is_a_share_of_what_is_better_the_higher() -> None:
    assert task_scores("maximize", 0.4, 0.5, 0.8).retained("recipe", "t", "m") == (80.0, 50.0)
    assert task_scores("maximize", 0.4, 0.5, 0.8).retained("variant", "t", "m") is None
    assert task_scores("maximize", 0.4, 0.0, 0.8).retained("recipe", "t", "m") is None


def test_retained_of_a_perplexity_is_the_other_way_round() -> None:
    assert task_scores("minimize", 20.0, 10.0, 5.0).retained("recipe", "t", "m") == (50.0, 25.0)
