"""Recipes are tuned to tasks by their smooth metrics, and to texts, item by item and token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.errors import ConfigError, DataError
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.kinds import Context, ObjectiveConfig
from gptailor_merge.objectives.perplexity import PerplexityConfig
from gptailor_merge.objectives.repetition import RepetitionConfig
from gptailor_merge.objectives.tasks.task import TaskConfig
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.teachers import Teachers
from gptailor_merge.tuning import fitting
from gptailor_merge.tuning.tunable_model import TunableModel
from gptailor_merge.tuning.tuner import Aim, TuneOptions, Tuner
from tests.conftest import MakeFamily, recipe_of

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def members(make_family: MakeFamily) -> dict[str, str]:
    return make_family(dtype=torch.float32)


@pytest.fixture(scope="module")
def composer(members: dict[str, str]) -> Composer:
    family = Family.load(members["base"], {name: members[name] for name in ("math", "code")})
    return Composer(Bank(family, Precision.of("float32", "float32", torch.float32)))


@pytest.fixture
def context(composer: Composer) -> Context:
    family = composer.bank.family
    directory = family.base.directory
    teacher = Teachers(family, CPU, torch.float32).get
    return Context(load_tokenizer(directory), directory, teacher, CPU, torch.float32)


def choice(tasks: Path, metric: str | None, **more: Any) -> TaskConfig:
    return TaskConfig(kind="task", tasks=("tiny_choice",), include_path=str(tasks), metric=metric, **more)


@pytest.mark.parametrize("metric", ["margin", "choice_loss"])
def test_gradients_are_those_of_the_mean_over_items_and_over_tokens(
    metric: str,
    tasks: Path,
    texts: dict[str, str],
    members: dict[str, str],
    composer: Composer,
    context: Context,
) -> None:
    """Along the gradient the loss, as a search scores it, changes as the gradient says."""
    sets = token_sets(texts, context.tokenizer, 128, 16)
    language = PerplexityConfig(kind="perplexity", data=texts)
    aims = [Aim(choice(tasks, metric), 2.0, ()), Aim(language, 0.5, sets)]
    tuner = Tuner(aims, context, TuneOptions(step_tokens=10**6))
    start = plan(Recipe.from_mapping(recipe_of(members)))
    model = TunableModel(composer, start, "tensor", norms=True, outer=True)
    (batches,) = tuner._fitted.rungs
    assert len(batches) > 1
    tokens = fitting._differentiate(model, tuner._fitted.objectives, batches, tuner._weights)
    items = sum(batch.ids.numel() for batch in batches if batch.rows)
    assert tokens == 3 * tuner._fitted.tokens + items
    numbers = [p for p in (*model.weights, *model.gains) if p.grad is not None]
    slope = sum(float(p.grad.square().sum()) for p in numbers)
    losses = []
    step = 0.01 / slope
    for way in (step, -2 * step):
        with torch.no_grad():
            for parameter in numbers:
                parameter.add_(parameter.grad, alpha=way)
        losses.append(fitting._loss(model, tuner._fitted, tuner._weights))
    assert (losses[0] - losses[1]) / (2 * step * slope) == pytest.approx(1.0, rel=0.03)


def test_items_that_are_held_back_tell_what_helps(
    tasks: Path, members: dict[str, str], composer: Composer, context: Context, tmp_path: Path
) -> None:
    options = TuneOptions(steps=6, rate=0.1, norms=False, step_tokens=100)
    tuner = Tuner([Aim(choice(tasks, "choice_loss"), 1.0, ())], context, options)
    fitted, held_back = (
        {text for o in passes.objectives for s in o.sets for text in s.documents}
        for passes in (tuner._fitted, tuner._held_back)
    )
    assert fitted
    assert held_back - fitted == held_back != set()
    start = plan(Recipe.from_mapping(recipe_of(members)))
    tuned, tuning = tuner.tune(composer, start, tmp_path, "gains.safetensors")
    assert tuning.fit.before == pytest.approx(tuning.before, abs=1e-5)
    assert (tuned != start) == tuning.helps == (tuning.after < tuning.before)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("accuracy", "tasks have a gradient by the metrics margin and choice_loss alone"),
        ("few", "no task has 4 items, every 4th of which is held back"),
        ("repetition", "an objective of the kind repetition has no gradient"),
    ],
)
def test_an_objective_that_nothing_can_be_fitted_to_is_one_sentence(
    objective: str, message: str, tasks: Path, texts: dict[str, str], composer: Composer, context: Context
) -> None:
    config: ObjectiveConfig = {
        "accuracy": choice(tasks, None),
        "few": choice(tasks, "margin", limit=3),
        "repetition": RepetitionConfig(kind="repetition", data=texts),
    }[objective]
    with pytest.raises((ConfigError, DataError), match=message):
        Tuner([Aim(config, 1.0, ())], context, TuneOptions())
