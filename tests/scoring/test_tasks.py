"""A task's score by shared prefixes is lm-eval's on the written model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.publish.materialize import materialize
from gptailor_merge.recipe.family import Family
from gptailor_merge.recipe.operations import plan
from gptailor_merge.scoring.batching import layout
from gptailor_merge.scoring.calibration import load_tokenizer
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.passes import Passes, predictions_alone
from gptailor_merge.scoring.tasks import (
    TaskSettings,
    encoder,
    likelihood,
    load_items,
    takes_trees,
)
from gptailor_merge.search.space import Space
from tests.zoo import DEPTH, write_family

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
METRICS = {
    "tiny_choice": ("acc", "acc_norm"),
    "tiny_loglikelihood": ("perplexity",),
    "tiny_rolling": ("word_perplexity",),
}


def evaluator_of(
    loaded: Family, tokenizer: Any, tasks: Path, *, batch_tokens: int, **settings: Any
) -> Evaluator:
    """Every metric of every task on which likelihoods are asked for."""
    base = AutoModelForCausalLM.from_pretrained(loaded.base.directory, dtype=torch.float32)
    lm = encoder(loaded.base.directory, tokenizer)
    objectives: list[Any] = []
    for task, metrics in METRICS.items():
        items = load_items(TaskSettings((task,), tasks, "test", **settings), lm)
        trees = takes_trees(items, lambda batch: predictions_alone(base, batch), CPU)
        objectives += [likelihood(items, metric, trees=trees) for metric in metrics]
    rungs = layout([s for o in objectives for s in o.sets], batch_tokens, device=CPU)
    composer = Composer(Bank(loaded, Precision.of("float32", "float32", torch.float32)))
    return Evaluator(composer, Passes(objectives, rungs))


@pytest.fixture
def tokenizer(family: dict[str, str]) -> Any:
    return load_tokenizer(Path(family["base"]))


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_scores_are_those_of_lm_eval_on_the_written_model(
    name: str, tokenizer: Any, tasks: Path, tmp_path: Path
) -> None:
    family = write_family(tmp_path, name, dtype=torch.float32)
    loaded = Family.load(family["base"], {n: family[n] for n in ("math", "code")})
    models = tuple(member.model for member in loaded.members)
    space = Space(models, DEPTH, 6, tuple(range(1, DEPTH)), ("task_arithmetic",), "float32", "float32")
    rng = np.random.RandomState(1)
    parent = space.random(rng)
    recipes = [space.decode(space.mutate(parent, rng)) for _ in range(3)]
    evaluator = evaluator_of(loaded, tokenizer, tasks, batch_tokens=256)
    outcomes = evaluator.score([plan(recipe) for recipe in recipes])
    assert [outcome.cause for outcome in outcomes] == [None] * 3
    materialize(recipes[0], tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    alone = evaluator.passes.score(written)
    live = HFLM(pretrained=written, tokenizer=tokenizer, batch_size=4)
    results = simple_evaluate(
        live, tasks=list(METRICS), task_manager=TaskManager(include_path=tasks), bootstrap_iters=0
    )
    for objective in evaluator.passes.objectives:
        for task, score in outcomes[0].scores[objective.name].items():
            expected = results["results"][task][f"{objective.name},none"]
            if score.unit == "negated":
                assert score.natural == alone[objective.name][task].natural == expected
            else:
                assert score.natural == pytest.approx(expected, rel=1e-6)
