"""What models write: lm-eval's generation tasks to the last digit, and repetition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, GenerationConfig

from gptailor_merge.calibration.texts import TextSource
from gptailor_merge.errors import ConfigError, DataError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.objectives.repetition import Repetition, repeated, repetition
from gptailor_merge.objectives.tasks.generated_answers import TaskGeneration
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.task import objective_of
from gptailor_merge.objectives.tasks.task_items import TaskSettings, load_items
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from tests.objectives.tasks.test_likelihood import evaluator_of, family_of, lm_eval_on, recipes_of
from tests.objectives.tasks.test_likelihood import member as member
from tests.objectives.tasks.test_likelihood import tokenizer as tokenizer

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


def made_of(settings: TaskSettings, lm: Any, **options: Any) -> list[TaskGeneration]:
    items = load_items(settings, lm)
    made = [objective_of(items, metric, trees=False, lm=lm, **options) for metric in METRICS]
    assert all(isinstance(one, TaskGeneration) for one in made)
    return made  # type: ignore[return-value]


def dense(directory: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_scores_are_those_of_lm_eval_on_the_written_models(
    name: str, tokenizer: Any, generation: TaskSettings, tmp_path: Path
) -> None:
    """Of a generation of candidates, each in turn in the one language model of lm-eval's."""
    loaded = family_of(tmp_path, name)
    recipes = recipes_of(loaded, 4)
    made = made_of(generation, encoder(loaded.base.directory, tokenizer))
    evaluator = evaluator_of(loaded, made)
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
    """And our own random numbers go on as if nothing had been sampled."""
    sampled = {"until": ["="], "max_gen_toks": 6, "do_sample": True, "temperature": 5.0}
    lm = encoder(member, tokenizer)
    model = dense(member)
    greedy, _ = made_of(written(tasks), lm)
    made, _ = made_of(written(tasks, generation_kwargs=sampled), lm)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    found = [made.measure("filtered", model, 0, 12).tolist() for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    assert found[0] == found[1] != greedy.measure("filtered", model, 0, 12).tolist()
    assert made.fingerprint != greedy.fingerprint


def test_items_are_measured_in_parts_and_in_any_batches(
    generation: TaskSettings, tokenizer: Any, member: Path
) -> None:
    lm, model = encoder(member, tokenizer), dense(member)
    made, _ = made_of(generation, lm, batch_size=1)
    whole = made.measure("filtered", model, 0, 12).tolist()
    parts = [made.measure("filtered", model, *part) for part in ((0, 2), (2, 3), (3, 12))]
    assert [value for part in parts for value in part.tolist()] == whole
    for batch_size in (2, 5, 64):
        made, _ = made_of(generation, lm, batch_size=batch_size)
        assert made.measure("filtered", model, 0, 12).tolist() == whole
    assert set(whole) == {0.0, -1.0}


def test_batches_that_memory_does_not_hold_are_halved(
    generation: TaskSettings,
    prompts: dict[str, TextSource],
    tokenizer: Any,
    member: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For tasks and for repetition; it is remembered. What does not fit alone is an error."""
    model = dense(member)
    lm = encoder(member, tokenizer)
    made, _ = made_of(generation, lm, batch_size=16)
    continued = repetition("r", prompts, tokenizer, prompts=9, prompt_tokens=2, new_tokens=8)
    expected = [made.measure("filtered", model, 0, 12), continued.measure("letters", model, 0, 4)]
    sizes = []
    generate = type(model).generate
    largest = 2

    def limited(self: Any, ids: Any = None, **named: Any) -> Any:
        size = len(named.get("input_ids", ids))
        sizes.append(size)
        if size > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, ids, **named) if ids is not None else generate(self, **named)

    monkeypatch.setattr(type(model), "generate", limited)
    found = [made.measure("filtered", model, 0, 12), continued.measure("letters", model, 0, 4)]
    assert [one.tolist() for one in found] == [one.tolist() for one in expected]
    assert {16, 8, 4, 2} <= set(sizes)
    sizes.clear()
    made.measure("filtered", model, 0, 12)
    continued.measure("letters", model, 0, 4)
    assert max(sizes) == 2
    largest = 0
    with pytest.raises(torch.OutOfMemoryError):
        made.measure("filtered", model, 0, 12)


def test_lm_evals_language_model_is_given_back(
    generation: TaskSettings, tokenizer: Any, member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = encoder(member, tokenizer)
    before = lm.model, lm.config, lm.device, lm.batch_size
    made, _ = made_of(generation, lm)
    monkeypatch.setattr(HFLM, "tok_batch_encode", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.measure("filtered", dense(member), 0, 12)
    assert (lm.model, lm.config, lm.device, lm.batch_size) == before


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3, 4], 0.0),
        ([1] * 10, 1 - 1 / 7),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 - 4 / 5),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4], 1 - 5 / 6),
        ([1, 2, 3, 9, 1, 2, 3, 8], 0.0),
    ],
)
def test_repeated_is_the_share_of_n_grams_that_have_been_there(ids: list[int], expected: float) -> None:
    assert repeated(ids) == pytest.approx(expected)


@given(st.lists(st.integers(0, 2), min_size=4, max_size=30))
def test_repeated_counts_each_n_gram_after_its_first(ids: list[int]) -> None:
    grams = [tuple(ids[n : n + 4]) for n in range(len(ids) - 3)]
    again = sum(gram in grams[:n] for n, gram in enumerate(grams))
    assert repeated(ids) == pytest.approx(again / len(grams))


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, TextSource]:
    """Of two sources; some documents are short, one is empty."""
    texts = {"letters": ["ABCDEFGH", "", "XYZXYZXYZ", "AB", "HELLO THERE"], "sums": ["1+1=2", "2+2=4"]}
    sources = {}
    for name, documents in texts.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f'{{"text": "{text}"}}\n' for text in documents))
        sources[name] = TextSource(str(file))
    return sources


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_repetition_is_of_the_greedy_continuation(
    name: str, prompts: dict[str, TextSource], tokenizer: Any, tmp_path: Path
) -> None:
    """As a model without a KV cache goes on, token by token, past the end of the text."""
    loaded = family_of(tmp_path, name)
    made = repetition("repetition", prompts, tokenizer, prompts=4, prompt_tokens=5, new_tokens=12)
    evaluator = evaluator_of(loaded, [made])
    plans = [plan(recipe) for recipe in recipes_of(loaded, 3)]
    outcomes = evaluator.score(plans)
    for one, outcome in zip(plans, outcomes, strict=True):
        model = evaluator.composer.compose(one)
        for source, ids in made.prompts.items():
            shares = [repeated(continued(model, list(prompt), 12)) for prompt in ids]
            score = outcome.scores["repetition"][source]
            assert score.mean == score.natural == pytest.approx(sum(shares) / len(shares))
            assert score.count == len(ids)
    assert [len(ids) for ids in made.prompts["letters"]] == [5, 5, 2, 5]
    assert [one.units for one in made.sets] == [4, 2]


def continued(model: Any, ids: list[int], tokens: int) -> list[int]:
    with torch.inference_mode():
        for _ in range(tokens):
            ids = [*ids, int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids[-tokens:]


def test_repetition_does_not_depend_on_batches_nor_on_the_models_own_settings(
    prompts: dict[str, TextSource], tokenizer: Any, member: Path
) -> None:
    def measured(model: Any, batch_size: int) -> list[float]:
        made = repetition("r", prompts, tokenizer, prompt_tokens=5, new_tokens=12, batch_size=batch_size)
        return [*made.measure("letters", model, 0, 1), *made.measure("letters", model, 1, 4)]

    model = dense(member)
    expected = measured(model, 16)
    assert measured(model, 1) == expected
    assert len(set(expected)) > 1
    own = GenerationConfig(
        do_sample=True, repetition_penalty=9.0, eos_token_id=list(range(60)), max_new_tokens=1
    )
    model.generation_config = own
    assert measured(model, 16) == expected
    assert model.generation_config is own


def test_what_repetition_depends_on(prompts: dict[str, TextSource], tokenizer: Any) -> None:
    def made(**options: Any) -> Repetition:
        return repetition("r", prompts, tokenizer, **{"prompt_tokens": 5, "new_tokens": 12, **options})

    assert made().fingerprint == made(batch_size=2).fingerprint
    others = [made(), made(new_tokens=13), made(prompt_tokens=4), made(prompts=1)]
    assert len({one.fingerprint for one in others}) == 4
    assert made(prompts=2).sets[0].documents == {"ABCDEFGH", "XYZXYZXYZ"}


def test_a_source_without_documents_is_named(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"empty.jsonl: no documents; nothing can be continued"):
        repetition("r", {"s": TextSource(str(file))}, tokenizer)


@pytest.mark.parametrize("donor", ["base", "math"])
def test_a_candidate_generates_by_the_settings_that_the_written_model_gets(
    donor: str, tokenizer: Any, generation: TaskSettings, tmp_path: Path
) -> None:
    """Those of the member whose tokenizer it gets, here without the letters that a filter looks for."""
    loaded = family_of(tmp_path, "llama")
    for one in loaded.members:
        never = tokenizer.convert_tokens_to_ids(list("ABCDEFGHIJKLM")) if one.name == donor else None
        GenerationConfig(suppress_tokens=never, eos_token_id=0, pad_token_id=1).save_pretrained(one.directory)
        tokenizer.save_pretrained(one.directory)
    parameters = {"tokenizer": loaded.by_name(donor).model}  # type: ignore[union-attr]
    recipe = Recipe.from_mapping({**recipes_of(loaded, 1)[0].to_mapping(), "parameters": parameters})
    evaluator = evaluator_of(loaded, made_of(generation, encoder(loaded.base.directory, tokenizer)))
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
