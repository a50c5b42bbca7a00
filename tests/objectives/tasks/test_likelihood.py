"""lm-eval's tasks as objectives: the numbers are lm-eval's own."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from gptailor_merge.calibration.batches import Segment, layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.errors import ConfigError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.protocols import Prediction
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.likelihood import is_likeliest, takes_trees
from gptailor_merge.objectives.tasks.smooth import margin, smooth_slopes, smooth_value
from gptailor_merge.objectives.tasks.task import objective_of
from gptailor_merge.objectives.tasks.task_items import TaskSettings, load_items
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.passes import Passes, predictions_alone
from gptailor_merge.space.space import Space
from tests.conftest import MakeFamily
from tests.zoo import DEPTH, write_family

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
METRICS = {
    "tiny_choice": ("acc", "acc_norm"),
    "tiny_loglikelihood": ("perplexity",),
    "tiny_rolling": ("word_perplexity",),
}


def family_of(root: Path, name: str) -> Family:
    """A family of float32 models."""
    directories = write_family(root, name, dtype=torch.float32)
    return Family.load(directories["base"], {n: directories[n] for n in ("math", "code")})


def recipes_of(loaded: Family, count: int) -> list[Recipe]:
    """Children of one parent."""
    models = tuple(member.model for member in loaded.members)
    removable = tuple(range(1, DEPTH))
    space = Space(models, DEPTH, (6,), removable, ("task_arithmetic",), "float32", "float32")
    rng = np.random.RandomState(1)
    parent = space.random(rng)
    return [space.recipe(space.decode(space.mutate(parent, rng))) for _ in range(count)]


def evaluator_of(loaded: Family, objectives: list[Any], *, batch_tokens: int = 256) -> Evaluator:
    in_rows = [s for o in objectives for s in o.sets if isinstance(s, TokenSet)]
    rungs = layout(in_rows, batch_tokens, device=CPU)
    composer = Composer(Bank(loaded, Precision.of("float32", "float32", torch.float32)))
    return Evaluator(composer, Passes(objectives, rungs))


def likelihoods_of(loaded: Family, tokenizer: Any, tasks: Path) -> list[Any]:
    """Every metric of every task on which likelihoods are asked for."""
    base = AutoModelForCausalLM.from_pretrained(loaded.base.directory, dtype=torch.float32)
    lm = encoder(loaded.base.directory, tokenizer)
    objectives: list[Any] = []
    for task, metrics in METRICS.items():
        items = load_items(TaskSettings((task,), tasks), lm)
        trees = takes_trees(items, lambda batch: predictions_alone(base, batch), CPU)
        objectives += [objective_of(items, metric, trees=trees, lm=lm) for metric in metrics]
    return objectives


def lm_eval_on(directory: Path, tokenizer: Any, tasks: list[str], manager: Any, **settings: Any) -> Any:
    """What lm-eval finds of a written model."""
    written = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    batch_size = settings.pop("batch_size", 4)
    live = HFLM(pretrained=written, tokenizer=tokenizer, batch_size=batch_size)
    return simple_evaluate(live, tasks=tasks, task_manager=manager, bootstrap_iters=0, **settings)


def local(tasks: Path, **changed: Any) -> TaskSettings:
    """A task that is `tiny_choice` with other settings, written into the directory."""
    document = yaml.safe_load((tasks / "choice.yaml").read_text())
    document.update({"task": "local", **changed})
    (tasks / "local.yaml").write_text(yaml.safe_dump(document))
    return TaskSettings(("local",), tasks)


@pytest.fixture
def tokenizer(family: dict[str, str]) -> Any:
    return load_tokenizer(Path(family["base"]))


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_scores_are_those_of_lm_eval_on_the_written_model(
    name: str, tokenizer: Any, tasks: Path, tmp_path: Path
) -> None:
    loaded = family_of(tmp_path, name)
    recipes = recipes_of(loaded, 3)
    evaluator = evaluator_of(loaded, likelihoods_of(loaded, tokenizer, tasks))
    outcomes = evaluator.score([plan(recipe) for recipe in recipes])
    assert [outcome.cause for outcome in outcomes] == [None] * 3
    materialize(recipes[0], tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    alone = evaluator.passes.score(written)
    manager = TaskManager(include_path=tasks, include_defaults=False)
    results = lm_eval_on(tmp_path / "out", tokenizer, list(METRICS), manager)
    compared = Counter()
    for measured in evaluator.passes.objectives:
        for task, score in outcomes[0].scores[measured.name].items():
            expected = results["results"][task][f"{measured.metric.key},none"]
            if score.unit == "negated":
                assert score.natural == alone[measured.name][task].natural == expected
            else:
                assert score.natural == pytest.approx(expected, rel=1e-6)
            compared[score.unit] += 1
    assert compared == {"negated": 2, "perplexity": 2}


def scores_on(directory: Path, tokenizer: Any, settings: TaskSettings, metric: str | None) -> Scores:
    """Scores a dense model, task by task."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    lm = encoder(directory, tokenizer)
    objective = objective_of(load_items(settings, lm), metric, trees=True, lm=lm, batch_size=4)
    rungs = layout([s for s in objective.sets if isinstance(s, TokenSet)], 256, device=CPU)
    return Passes([objective], rungs).score(model)


@pytest.fixture(scope="session")
def member(make_family: MakeFamily) -> Path:
    """A dense model in float32."""
    return Path(make_family(dtype=torch.float32)["base"])


OPTIONS = "['X' ~ options[0], '?', 'SEVEN', 'A B']"


@pytest.mark.parametrize("target", ["label", "[label, 3]", f"({OPTIONS})[label]"])
def test_the_margin_is_of_the_right_options_over_the_others(
    target: str, tokenizer: Any, member: Path, tasks: Path
) -> None:
    """lm-eval lets an answer be the place of an option, several places, or the option itself."""
    settings = local(tasks, doc_to_choice=f"{{{{{OPTIONS}}}}}", doc_to_target=f"{{{{{target}}}}}")
    manager = TaskManager(include_path=tasks, include_defaults=False)
    results = lm_eval_on(member, tokenizer, ["local"], manager)
    margins = []
    for sample in results["samples"]["local"]:
        likelihoods = [float(value) for ((value, _),) in sample["resps"]]
        right = {sample["doc"]["label"], *([3] if "3]" in target else [])}
        of_right = math.log(sum(math.exp(v) for n, v in enumerate(likelihoods) if n in right))
        margins.append(
            of_right - math.log(sum(math.exp(v) for n, v in enumerate(likelihoods) if n not in right))
        )
    smooth = scores_on(member, tokenizer, settings, "margin")["margin"]["local"]
    assert smooth.natural == pytest.approx(sum(margins) / len(margins), rel=1e-5)
    loss = scores_on(member, tokenizer, settings, "choice_loss")["choice_loss"]["local"]
    assert loss.natural == pytest.approx(
        sum(math.log1p(math.exp(-m)) for m in margins) / len(margins), rel=1e-5
    )
    assert (smooth.unit, smooth.count) == ("negated", 12)
    accuracy = scores_on(member, tokenizer, settings, "acc")["acc"]["local"].natural
    assert accuracy == results["results"]["local"]["acc,none"]


def test_likelihoods_without_a_context_do_not_count_as_options(
    tokenizer: Any, member: Path, tasks: Path
) -> None:
    """lm-eval asks for them besides where a task has acc_mutual_info."""
    plain = scores_on(member, tokenizer, local(tasks), "margin")
    with_more = local(tasks, metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}])
    smooth = scores_on(member, tokenizer, with_more, "margin")["margin"]["local"]
    assert smooth.mean == pytest.approx(plain["margin"]["local"].mean, rel=1e-5)
    manager = TaskManager(include_path=tasks, include_defaults=False)
    results = lm_eval_on(member, tokenizer, ["local"], manager)["results"]["local"]
    score = scores_on(member, tokenizer, with_more, "acc_mutual_info")["acc_mutual_info"]["local"]
    assert score.natural == results["acc_mutual_info,none"]


def test_a_margin_of_nothing_is_none() -> None:
    """An item of which no option is right, or all are, tells nothing."""

    class Task:
        multiple_input = 0

        def doc_to_target(self, document: list[int]) -> list[int]:
            return document

        def doc_to_choice(self, document: list[int]) -> list[str]:
            return ["A", "B"]

    assert margin([-1.0, -2.0], Task(), [0]) == pytest.approx(1.0)
    assert smooth_slopes("margin", [-1.0, -2.0, -3.0], Task(), [0]) == [-1.0, 1.0, 0.0]
    assert smooth_slopes("choice_loss", [-1.0, -2.0], Task(), [-1]) == [0.0, 0.0]
    here, there = (smooth_value("choice_loss", [at, -2.0], Task(), [0]) for at in (-1.0 - 1e-6, -1.0 + 1e-6))
    slope, other = smooth_slopes("choice_loss", [-1.0, -2.0], Task(), [0])
    assert slope == -other == pytest.approx((there - here) / 2e-6, rel=1e-5)
    assert margin([-1.0, -2.0], Task(), [-1]) == margin([-1.0, -2.0], Task(), [0, 1]) == 0.0


def test_metrics_that_differ_are_no_objective(tokenizer: Any, member: Path, tasks: Path) -> None:
    lm = encoder(member, tokenizer)
    (choice, likelihood, generation) = (
        load_items(TaskSettings((f"tiny_{name}",), tasks), lm)[0]
        for name in ("choice", "loglikelihood", "generation")
    )
    with pytest.raises(
        ConfigError, match=r"differ in their metric: acc \(negated\), perplexity \(perplexity\)"
    ):
        objective_of([choice, likelihood], None, trees=False, lm=lm)
    with pytest.raises(ConfigError, match="answers are generated in tiny_generation only"):
        objective_of([choice, generation], None, trees=False, lm=lm)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("f1", "task tiny_choice: no such metric, found 'f1'; known are acc, acc_norm, margin, choice_loss"),
        ("acc,strict", "task tiny_choice: no such filter, found 'strict'; known are none"),
    ],
)
def test_unknown_metrics_are_named(
    metric: str, message: str, tokenizer: Any, member: Path, tasks: Path
) -> None:
    lm = encoder(member, tokenizer)
    items = load_items(TaskSettings(("tiny_choice",), tasks), lm)
    with pytest.raises(ConfigError) as caught:
        objective_of(items, metric, trees=False, lm=lm)
    assert str(caught.value) == message


def test_a_metric_that_is_no_mean_is_refused(tokenizer: Any, member: Path, tasks: Path) -> None:
    lm = encoder(member, tokenizer)
    metrics = [{"metric": "acc"}, {"metric": "mcc", "aggregation": "matthews_corrcoef"}]
    items = load_items(local(tasks, metric_list=metrics), lm)
    with pytest.raises(ConfigError) as caught:
        objective_of(items, "mcc", trees=False, lm=lm)
    assert str(caught.value) == (
        "task local: mcc is aggregated by matthews_corrcoef, and a search needs a mean over items; "
        "its metrics are acc, mcc"
    )


def test_a_metric_that_is_better_the_lower_is_minimised(tokenizer: Any, member: Path, tasks: Path) -> None:
    settings = local(tasks, metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": False}])
    score = scores_on(member, tokenizer, settings, None)["acc"]["local"]
    assert score.unit == "plain"
    assert (
        score.natural
        == score.mean
        == scores_on(member, tokenizer, local(tasks), "acc")["acc"]["local"].natural
    )


def test_of_tokens_that_are_equally_likely_a_greedy_model_says_the_first() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    at, asked = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 2])
    prediction = Prediction(Segment("d", (0,), range(1)), asked, logits.log_softmax(-1), at)
    assert is_likeliest(prediction).tolist() == (logits.argmax(-1)[at] == asked).tolist()
    assert is_likeliest(prediction).tolist() == [False, True, False, True, False]
