"""Generated answers have lm-eval's scores, to the last digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, GenerationConfig

from gptailor_merge.calibration.texts import TextSource
from gptailor_merge.errors import ConfigError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.objectives.repetition import repetition
from gptailor_merge.objectives.tasks.generated_answers import TaskGeneration
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.task import objective_of
from gptailor_merge.objectives.tasks.task_items import TaskSettings, load_items
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from tests.objectives.tasks.test_likelihood import evaluator_of, family_of, lm_eval_on, recipes_of
from tests.objectives.tasks.test_likelihood import member as member
from tests.objectives.tasks.test_likelihood import tokenizer as tokenizer
from tests.objectives.test_repetition import prompts as prompts

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

# Random models answer anything: right is an answer without some letters, which is so for a part of them.
FILTERS = [
    {
        "name": "strict",
        "filter": [{"function": "regex", "regex_pattern": "([A-M])"}, {"function": "take_first"}],
    },
    {
        "name": "voted",
        "filter": [
            {"function": "regex", "regex_pattern": "([0-9#-+])"},
            {"function": "majority_vote"},
            {"function": "take_first"},
        ],
    },
]
METRICS = ("exact_match", "exact_match,voted")


@pytest.fixture
def generation(tasks: Path) -> TaskSettings:
    """A task whose answers are filtered in two ways, and given three times."""
    return written(tasks)


def written(tasks: Path, **changed: Any) -> TaskSettings:
    document = yaml.safe_load((tasks / "generation.yaml").read_text())
    document |= {
        "task": "filtered",
        "doc_to_target": "[invalid]",
        "filter_list": FILTERS,
        "repeats": 3,
        "generation_kwargs": {"until": ["=", "?"], "max_gen_toks": 6},
        **changed,
    }
    (tasks / "filtered.yaml").write_text(yaml.safe_dump(document))
    return TaskSettings(("filtered",), tasks)


def objectives_of(settings: TaskSettings, lm: Any, **options: Any) -> list[TaskGeneration]:
    items = load_items(settings, lm)
    objectives = [objective_of(items, metric, trees=False, lm=lm, **options) for metric in METRICS]
    assert all(isinstance(objective, TaskGeneration) for objective in objectives)
    return objectives  # type: ignore[return-value]


def dense(directory: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_scores_are_those_of_lm_eval_on_the_written_models(
    name: str, tokenizer: Any, generation: TaskSettings, tmp_path: Path
) -> None:
    """Each candidate of a generation is put in turn into lm-eval's language model."""
    loaded = family_of(tmp_path, name)
    recipes = recipes_of(loaded, 4)
    evaluator = evaluator_of(loaded, objectives_of(generation, encoder(loaded.base.directory, tokenizer)))
    outcomes = evaluator.score([plan(recipe) for recipe in recipes])
    assert [outcome.cause for outcome in outcomes] == [None] * 4
    manager = TaskManager(include_path=generation.include_path, include_defaults=False)
    seen = set()
    for number in (0, 3):
        out = tmp_path / f"out{number}"
        materialize(recipes[number], out)
        results = lm_eval_on(out, tokenizer, ["filtered"], manager)["results"]["filtered"]
        alone = evaluator.passes.score(dense(out))
        for metric, key in zip(METRICS, ("exact_match,strict", "exact_match,voted"), strict=True):
            score = outcomes[number].scores[metric]["filtered"]
            assert score.natural == alone[metric]["filtered"].natural == results[key]
            assert (score.count, score.unit) == (12, "negated")
            seen.add(score.natural)
    assert seen - {0.0, 1.0}


def test_all_filters_are_known(generation: TaskSettings, tokenizer: Any, member: Path) -> None:
    lm = encoder(member, tokenizer)
    items = load_items(generation, lm)
    assert items[0].metric(None) == items[0].metric("exact_match,strict")
    with pytest.raises(ConfigError) as caught:
        objective_of(items, "exact_match,loose", trees=False, lm=lm)
    assert str(caught.value) == "task filtered: no such filter, found 'loose'; known are strict, voted"


def test_sampled_answers_are_the_same_each_time(tasks: Path, tokenizer: Any, member: Path) -> None:
    """Our own random numbers go on as if nothing had been sampled."""
    sampled = {"until": ["="], "max_gen_toks": 6, "do_sample": True, "temperature": 5.0}
    lm = encoder(member, tokenizer)
    model = dense(member)
    greedy, _ = objectives_of(written(tasks), lm)
    objective, _ = objectives_of(written(tasks, generation_kwargs=sampled), lm)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    answers = [objective.measure("filtered", model, 0, 12).tolist() for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    assert answers[0] == answers[1] != greedy.measure("filtered", model, 0, 12).tolist()
    assert objective.fingerprint != greedy.fingerprint


def test_items_are_measured_in_parts_and_in_any_batches(
    generation: TaskSettings, tokenizer: Any, member: Path
) -> None:
    lm, model = encoder(member, tokenizer), dense(member)
    objective, _ = objectives_of(generation, lm, batch_size=1)
    whole = objective.measure("filtered", model, 0, 12).tolist()
    parts = [objective.measure("filtered", model, *part) for part in ((0, 2), (2, 3), (3, 12))]
    assert [value for part in parts for value in part.tolist()] == whole
    for batch_size in (2, 5, 64):
        objective, _ = objectives_of(generation, lm, batch_size=batch_size)
        assert objective.measure("filtered", model, 0, 12).tolist() == whole
    assert set(whole) == {0.0, -1.0}


def test_batches_that_memory_does_not_hold_are_halved(
    generation: TaskSettings,
    prompts: dict[str, TextSource],
    tokenizer: Any,
    member: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds for tasks and for repetition, and is remembered. An answer that does not fit alone is an error."""
    model = dense(member)
    lm = encoder(member, tokenizer)
    objective, _ = objectives_of(generation, lm, batch_size=16)
    continued = repetition("r", prompts, tokenizer, prompts=9, prompt_tokens=2, new_tokens=8)
    expected = [objective.measure("filtered", model, 0, 12), continued.measure("letters", model, 0, 4)]
    sizes = []
    generate = type(model).generate
    largest = 2

    def limited(self: Any, ids: Any = None, **keywords: Any) -> Any:
        size = len(keywords.get("input_ids", ids))
        sizes.append(size)
        if size > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, ids, **keywords) if ids is not None else generate(self, **keywords)

    monkeypatch.setattr(type(model), "generate", limited)
    halved = [objective.measure("filtered", model, 0, 12), continued.measure("letters", model, 0, 4)]
    assert [values.tolist() for values in halved] == [values.tolist() for values in expected]
    assert {16, 8, 4, 2} <= set(sizes)
    sizes.clear()
    objective.measure("filtered", model, 0, 12)
    continued.measure("letters", model, 0, 4)
    assert max(sizes) == 2
    largest = 0
    with pytest.raises(torch.OutOfMemoryError):
        objective.measure("filtered", model, 0, 12)


def test_lm_evals_language_model_is_given_back(
    generation: TaskSettings, tokenizer: Any, member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = encoder(member, tokenizer)
    before = lm.model, lm.config, lm.device, lm.batch_size
    objective, _ = objectives_of(generation, lm)
    monkeypatch.setattr(HFLM, "tok_batch_encode", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        objective.measure("filtered", dense(member), 0, 12)
    assert (lm.model, lm.config, lm.device, lm.batch_size) == before


@pytest.mark.parametrize("donor", ["base", "math"])
def test_a_candidate_generates_by_the_settings_that_the_written_model_gets(
    donor: str, tokenizer: Any, generation: TaskSettings, tmp_path: Path
) -> None:
    """They are those of the member whose tokenizer it gets, here without the letters that a filter looks for."""
    loaded = family_of(tmp_path, "llama")
    for written_to in loaded.members:
        never = tokenizer.convert_tokens_to_ids(list("ABCDEFGHIJKLM")) if written_to.name == donor else None
        settings = GenerationConfig(suppress_tokens=never, eos_token_id=0, pad_token_id=1)
        settings.save_pretrained(written_to.directory)
        tokenizer.save_pretrained(written_to.directory)
    parameters = {"tokenizer": loaded.by_name(donor).model}  # type: ignore[union-attr]
    recipe = Recipe.from_mapping({**recipes_of(loaded, 1)[0].to_mapping(), "parameters": parameters})
    evaluator = evaluator_of(loaded, objectives_of(generation, encoder(loaded.base.directory, tokenizer)))
    (outcome,) = evaluator.score([plan(recipe)])
    materialize(recipe, tmp_path / "out")
    manager = TaskManager(include_path=generation.include_path, include_defaults=False)
    results = lm_eval_on(tmp_path / "out", tokenizer, ["filtered"], manager)["results"]["filtered"]
    assert outcome.scores["exact_match"]["filtered"].natural == results["exact_match,strict"] == 1.0
    composed = evaluator.composer.compose(plan(recipe)).generation_config.to_dict()
    alone = dense(tmp_path / "out")
    assert composed == alone.generation_config.to_dict()
    alone.generation_config.suppress_tokens = None
    assert evaluator.passes.score(alone)["exact_match"]["filtered"].natural < 1.0
