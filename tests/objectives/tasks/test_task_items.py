"""Items of tasks are put as lm-eval puts them, and chosen and parted by what they ask."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from tokenizers.processors import TemplateProcessing

from gptailor_merge.errors import ConfigError, DataError
from gptailor_merge.objectives.tasks.harness import encoder, task_manager
from gptailor_merge.objectives.tasks.questions import purpose_of, stratified
from gptailor_merge.objectives.tasks.task_items import TaskItems, TaskSettings, load_items, splits_of
from tests.objectives.tasks.test_likelihood import lm_eval_on, local, scores_on
from tests.objectives.tasks.test_likelihood import member as member
from tests.objectives.tasks.test_likelihood import tokenizer as tokenizer

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

Row = Callable[[int], dict[str, Any]]
ROWS: dict[str, tuple[tuple[str, ...], Row]] = {
    "arc_easy": (
        ("train", "validation", "test"),
        lambda n: {
            "question": f"HOW MANY ARE {n}?",
            "choices": {"text": [f"{n}", "NONE", "A FEW", f"{n} OR SO"], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[n % 4],
        },
    ),
    "piqa": (
        ("train", "validation"),
        lambda n: {"goal": f"OPEN {n} JARS", "sol1": "TURN THE LID", "sol2": f"TURN {n}", "label": n % 2},
    ),
    "boolq": (
        ("train", "validation"),
        lambda n: {"passage": f"IT IS {n}.", "question": f"IS IT {n}", "label": n % 2},
    ),
    "winogrande": (
        ("train", "validation"),
        lambda n: {
            "sentence": f"TOM MET {n} MEN AND _ SANG A SONG.",
            "option1": "TOM",
            "option2": "THEY",
            "answer": str(1 + n % 2),
        },
    ),
    "hellaswag": (
        ("train", "validation"),
        lambda n: {
            "ctx_a": f"{n} PEOPLE WALK.",
            "ctx_b": "they",
            "activity_label": "WALKING",
            "endings": ["RUN [title] AWAY", f"ARE {n}", "SLEEP", "SIT DOWN"],
            "label": str(n % 4),
        },
    ),
    "lambada_openai": (("test",), lambda n: {"text": f"ONE AND {n} AND ONE AND {n + 1}"}),
    "wikitext": (
        ("train", "validation", "test"),
        lambda n: {"page": f" = A = \n IT IS {n} @-@ YEARS OLD .\n" * (n % 4 + 1)},
    ),
    "gsm8k": (
        ("train", "test"),
        lambda n: {"question": f"WHAT IS {n}+{n}?", "answer": f"IT IS {2 * n}\n#### {2 * n}"},
    ),
}
"""Of tasks that come with lm-eval: splits, and rows as their data sets on the Hub have them."""
EACH = 8


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets of ROWS, each split with rows of its own."""
    index = task_manager(tuple(ROWS), None).task_index
    paths = {load_yaml(index[name].yaml_path, resolve_func=False)["dataset_path"]: name for name in ROWS}

    def load(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        splits, row = ROWS[paths[path]]
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_list([row(100 * place + n) for n in range(EACH)])
                for place, split in enumerate(splits)
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(HFLM, "max_gen_toks", 8)  # the tiny models have a context of 64


def items_of(member: Path, tokenizer: Any, settings: TaskSettings) -> TaskItems:
    """Loads the items of a single task."""
    (items,) = load_items(settings, encoder(member, tokenizer))
    return items


def arguments_of(items: TaskItems) -> dict[int, list[Any]]:
    """Position -> what lm-eval is asked."""
    return {
        n: [instance.args for instance in item] for n, item in zip(items.ids, items.instances, strict=True)
    }


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("few_shot", [None, 2])
@pytest.mark.parametrize("task", ROWS)
@pytest.mark.weekly
def test_tasks_that_come_with_lm_eval_are_put_as_lm_eval_does(
    task: str, few_shot: int | None, tokenizer: Any, member: Path
) -> None:
    """On the split that lm-eval itself scores: the same requests, texts and tokens, and the same number."""
    settings = TaskSettings((task,), split=ROWS[task][0][-1], few_shot=few_shot)
    items = items_of(member, tokenizer, settings)
    manager = task_manager((task,), None)
    results = lm_eval_on(member, tokenizer, [task], manager, num_fewshot=few_shot)
    samples = results["samples"][task]
    assert arguments_of(items) == {sample["doc_id"]: sample["arguments"] for sample in samples}
    assert sorted(items.ids) == list(range(EACH))
    metric = items.metric(None)
    expected = results["results"][task][f"{metric.key},{metric.filter}"]
    score = scores_on(member, tokenizer, settings, None)[metric.name][task]
    assert score.natural == (expected if score.unit == "negated" else pytest.approx(expected, rel=1e-6))


@pytest.mark.usefixtures("hub")
def test_the_text_of_an_item_is_what_it_asks(tokenizer: Any, member: Path) -> None:
    """Its question and its options in an order of their own, not the place of the right one."""
    lm = encoder(member, tokenizer)
    texts = {}
    for task in ROWS:
        (items,) = load_items(TaskSettings((task,)), lm)
        texts[task] = dict(zip(items.ids, items.documents, strict=True))
    assert texts["arc_easy"][1] == "Question: HOW MANY ARE 101? Answer: 101 101 OR SO A FEW NONE"
    assert texts["piqa"][1] == "Question: OPEN 101 JARS Answer: TURN 101 TURN THE LID"
    assert texts["boolq"][1] == "IT IS 101. Question: IS IT 101? Answer: no yes"
    assert texts["winogrande"][1] == "SANG A SONG. TOM MET 101 MEN AND THEY TOM MET 101 MEN AND TOM"
    assert texts["hellaswag"][1] == "WALKING: 101 PEOPLE WALK. They ARE 101 RUN. AWAY SIT DOWN SLEEP"
    assert texts["lambada_openai"][1] == "ONE AND 1 AND ONE AND 2"
    assert texts["wikitext"][0] == "= A = IT IS 100-YEARS OLD ."
    assert texts["gsm8k"][1] == "Question: WHAT IS 1+1? Answer: IT IS 2 #### 2"


@pytest.mark.usefixtures("hub")
def test_splits_by_default() -> None:
    """Searched on is what is not the test split, held out what is."""
    names = ("arc_easy", "piqa", "lambada_openai", "gsm8k")
    assert list(splits_of(TaskSettings(names)).values()) == ["validation", "validation", "test", "train"]
    held_out = splits_of(TaskSettings(names, purpose="held_out"))
    assert list(held_out.values()) == ["test", "validation", "test", "test"]
    with pytest.raises(ConfigError) as caught:
        splits_of(TaskSettings(("piqa",), split="test"))
    assert str(caught.value) == "task piqa: no such split, found 'test'; known are train, validation"


@pytest.mark.usefixtures("hub")
def test_a_test_split_is_called_one(tokenizer: Any, member: Path) -> None:
    lm = encoder(member, tokenizer)
    tested = {task: load_items(TaskSettings((task,)), lm)[0].is_test for task in ROWS}
    assert [task for task, is_test in tested.items() if is_test] == ["lambada_openai"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("task", ["piqa", "gsm8k", "arc_easy"])
def test_an_item_is_none_of_its_own_examples(task: str, tokenizer: Any, member: Path) -> None:
    """On the training split, which few-shot examples come from and lm-eval never scores."""
    items = items_of(member, tokenizer, TaskSettings((task,), split="train", few_shot=EACH - 1))
    for some in items.instances:
        *examples, own = some[0].args[0].split("Question: ")[1:]
        assert len(set(examples)) == EACH - 1
        assert not any(example.startswith(own) for example in examples)


def test_an_item_is_none_of_its_own_examples_where_there_is_one_split(
    tokenizer: Any, member: Path, tasks: Path
) -> None:
    """Just as with lm-eval, request for request."""
    settings = local(tasks, test_split=None, validation_split="test", num_fewshot=3)
    manager = TaskManager(include_path=tasks, include_defaults=False)
    samples = lm_eval_on(member, tokenizer, ["local"], manager)["samples"]["local"]
    expected = {sample["doc_id"]: sample["arguments"] for sample in samples}
    assert arguments_of(items_of(member, tokenizer, settings)) == expected
    for some in expected.values():
        *examples, own = some[0][0].split("\n\n")
        assert len(examples) == 3
        assert not any(example.startswith(own) for example in examples)


@pytest.mark.parametrize("num_fewshot", [None, 0, 2])
def test_examples_are_as_many_as_lm_eval_would_give(
    num_fewshot: int | None, tokenizer: Any, member: Path, tasks: Path
) -> None:
    """A task that says 0 keeps to it."""
    settings = local(tasks, num_fewshot=num_fewshot)
    for few_shot, expected in ((None, num_fewshot or 0), (1, 0 if num_fewshot == 0 else 1)):
        asked = TaskSettings(settings.tasks, tasks, few_shot=few_shot)
        (question,) = {
            len(some[0][0].split("\n\n"))
            for some in arguments_of(items_of(member, tokenizer, asked)).values()
        }
        assert question == expected + 1


def test_a_chat_template_is_applied_as_lm_eval_does(tokenizer: Any, member: Path, tasks: Path) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m.role[:1].upper() + ':' + m.content + ']' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[A:' }}{% endif %}"
    )
    settings = local(tasks, num_fewshot=1, description="D. ")
    settings = TaskSettings(settings.tasks, tasks, chat_template=True)
    manager = TaskManager(include_path=tasks, include_defaults=False)
    results = lm_eval_on(member, tokenizer, ["local"], manager, apply_chat_template=True)
    expected = {sample["doc_id"]: sample["arguments"] for sample in results["samples"]["local"]}
    assert arguments_of(items_of(member, tokenizer, settings)) == expected
    assert all(
        some[0][0].startswith("[S:D. ][U:") and some[0][0].endswith("][A:") for some in expected.values()
    )
    score = scores_on(member, tokenizer, settings, "acc")["acc"]["local"]
    assert score.natural == results["results"]["local"]["acc,none"]


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_loglikelihood", "tiny_rolling", "local"])
def test_a_tokenizer_that_puts_a_token_before_each_text(
    task: str, tokenizer: Any, member: Path, tasks: Path
) -> None:
    """Also where there is no context, so that lm-eval puts that token there itself."""
    local(tasks, doc_to_text="")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="@ $A", special_tokens=[("@", 32)])
    tokenizer.bos_token = "@"
    assert tokenizer("A")["input_ids"] == [32, 33]
    settings = TaskSettings((task,), tasks)
    manager = TaskManager(include_path=tasks, include_defaults=False)
    results = lm_eval_on(member, tokenizer, [task], manager)["results"][task]
    items = items_of(member, tokenizer, settings)
    first = {windows[0].ids[0] for some in items.requests for windows in some if len(windows[0].ids) < 65}
    assert first == {32}
    metric = items.metric(None)
    score = scores_on(member, tokenizer, settings, None)[metric.name][task]
    assert score.natural == pytest.approx(results[f"{metric.key},none"], rel=1e-5)


def test_groups_are_their_tasks(tokenizer: Any, member: Path, tasks: Path) -> None:
    (tasks / "group.yaml").write_text("group: both\ntask: [tiny_choice, tiny_rolling]\n")
    items = load_items(TaskSettings(("both",), tasks), encoder(member, tokenizer))
    assert [of_task.name for of_task in items] == ["tiny_choice", "tiny_rolling"]
    again = load_items(TaskSettings(("tiny_rolling",), tasks), encoder(member, tokenizer))[0]
    assert arguments_of(again) == arguments_of(items[1])


def test_few_items_are_taken_from_everywhere(tokenizer: Any, member: Path, tasks: Path) -> None:
    """Every beginning has right answers in each place, in about their share; another seed, other items."""
    taken = {
        seed: items_of(member, tokenizer, TaskSettings(("tiny_choice",), tasks, limit=8, seed=seed))
        for seed in (0, 1)
    }
    for items in taken.values():
        right = [some[0].doc["label"] for some in items.instances]
        assert set(right[:8]) == {0, 1, 2, 3}
    assert taken[0].ids != taken[1].ids
    everything = items_of(member, tokenizer, TaskSettings(("tiny_choice",), tasks))
    assert everything.ids[:8] == taken[0].ids


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 9))
def test_each_beginning_of_a_stratified_order_has_each_stratum_in_its_share(
    strata: list[int], seed: int
) -> None:
    """To within one item."""
    order = stratified(strata, seed)
    assert sorted(order) == list(range(len(strata)))
    totals = Counter(strata)
    so_far: Counter[int] = Counter()
    for count, number in enumerate(order, start=1):
        so_far[strata[number]] += 1
        for stratum, total in totals.items():
            assert abs(so_far[stratum] - count * total / len(strata)) < len(totals)


def test_a_divided_split_gives_each_part_its_own_items(tokenizer: Any, member: Path, tasks: Path) -> None:
    divided = frozenset({"tiny_choice"})
    sides = {
        purpose: items_of(
            member, tokenizer, TaskSettings(("tiny_choice",), tasks, purpose=purpose, divided=divided)
        )
        for purpose in ("searched", "held_out")
    }
    assert sorted(n for items in sides.values() for n in items.ids) == list(range(12))
    for purpose, items in sides.items():
        assert {purpose_of(text) for text in items.documents} == {purpose}
    other = TaskSettings(("tiny_choice",), tasks, purpose="held_out", divided=frozenset({"tiny_rolling"}))
    assert len(items_of(member, tokenizer, other).ids) == 12


def test_items_are_left_out_by_their_texts(tokenizer: Any, member: Path, tasks: Path) -> None:
    everything = items_of(member, tokenizer, TaskSettings(("tiny_choice",), tasks))
    without = frozenset(everything.documents[:3])
    fewer = items_of(member, tokenizer, TaskSettings(("tiny_choice",), tasks, without=without))
    assert sorted(fewer.ids) == sorted(everything.ids[3:])
    nothing = TaskSettings(("tiny_choice",), tasks, without=frozenset(everything.documents))
    with pytest.raises(ConfigError, match="task tiny_choice: no items in the split 'test'"):
        items_of(member, tokenizer, nothing)


def test_a_split_whose_answers_are_hidden_is_refused(tokenizer: Any, member: Path, tasks: Path) -> None:
    for hidden in ("{{''}}", "{{ -1 }}"):
        with pytest.raises(ConfigError) as caught:
            items_of(member, tokenizer, local(tasks, doc_to_target=hidden))
        assert str(caught.value) == "task local: no right answers in the split 'test'; expected another"


def test_an_answer_without_tokens_is_refused_as_lm_eval_does(
    tokenizer: Any, member: Path, tasks: Path
) -> None:
    """So is one longer than the model's context."""
    for answer, count in (("", 0), ("A" * 65, 65)):
        settings = local(
            tasks, output_type="loglikelihood", doc_to_target=f"{{{{'{answer}'}}}}", metric_list=None
        )
        with pytest.raises(DataError) as caught:
            items_of(member, tokenizer, settings)
        assert str(caught.value) == (
            f"task local: an answer of {count} tokens, found {answer[:60]!r}; expected 1 to 64, behind a question"
        )
        manager = TaskManager(include_path=tasks, include_defaults=False)
        with pytest.raises(AssertionError):
            lm_eval_on(member, tokenizer, ["local"], manager)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"unsafe_code": True}, "task local: it runs code that models write, which lm-eval calls unsafe"),
        ({"doc_to_image": "question"}, "task local: it asks about images or sound; expected a task of text"),
        (
            {"filter_list": [{"name": "first", "filter": [{"function": "take_first"}]}]},
            "task local: it filters likelihoods; expected filters of generated answers only",
        ),
    ],
)
def test_what_a_search_cannot_score_is_refused(
    changed: dict[str, Any], message: str, tokenizer: Any, member: Path, tasks: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        items_of(member, tokenizer, local(tasks, **changed))
    assert str(caught.value) == message


def test_a_task_that_asks_in_several_ways_is_refused(tokenizer: Any, member: Path, tasks: Path) -> None:
    (tasks / "mixed.py").write_text(
        """
from lm_eval.api.task import ConfigurableTask

class Mixed(ConfigurableTask):
    def __init__(self, config):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def construct_requests(self, doc, ctx, **kwargs):
        first, *rest = super().construct_requests(doc, ctx, **kwargs)
        first.request_type = "loglikelihood_rolling"
        return [first, *rest]
"""
    )
    document = yaml.safe_load((tasks / "choice.yaml").read_text())
    text = yaml.safe_dump({**document, "task": "mixed"})
    (tasks / "mixed.yaml").write_text(f"{text}class: !function mixed.Mixed\n")
    with pytest.raises(ConfigError) as caught:
        items_of(member, tokenizer, TaskSettings(("mixed",), tasks))
    assert (
        str(caught.value) == "task mixed: it asks in ways of its own (loglikelihood, loglikelihood_rolling)"
    )


def test_errors_of_a_task_name_it(tokenizer: Any, member: Path, tasks: Path) -> None:
    with pytest.raises(DataError, match=r"^local: UndefinedError: "):
        items_of(member, tokenizer, local(tasks, doc_to_text="{{question.nothing.at_all}}"))
    with pytest.raises(
        ConfigError, match=r"lm-eval knows no task, found 'tiny_choise'; did you mean 'tiny_choice'"
    ):
        load_items(TaskSettings(("tiny_choise",), tasks), None)
    with pytest.raises(ConfigError, match="no such directory; expected one with tasks"):
        load_items(TaskSettings(("tiny_choice",), tasks / "none"), None)


def test_tasks_draw_lm_evals_random_numbers_and_leave_ours_alone(
    tokenizer: Any, member: Path, tasks: Path
) -> None:
    (tasks / "shuffled.py").write_text(
        "import random\ndef process(docs):\n    return docs.add_column('extra', random.sample('ABCDEFGHIJKLMN', 12))\n"
    )
    document = (tasks / "choice.yaml").read_text().replace("tiny_choice", "shuffled")
    (tasks / "shuffled.yaml").write_text(f"{document}process_docs: !function shuffled.process\n")
    settings = TaskSettings(("shuffled",), tasks)
    random.seed(5), np.random.seed(5)
    drawn = random.random(), np.random.rand()
    random.seed(5), np.random.seed(5)
    twice = [items_of(member, tokenizer, settings) for _ in range(2)]
    assert (random.random(), np.random.rand()) == drawn
    documents = [[some[0].doc for some in items.instances] for items in twice]
    assert documents[0] == documents[1]


def test_a_task_is_read_again_when_it_has_changed(tokenizer: Any, member: Path, tasks: Path) -> None:
    before = items_of(member, tokenizer, local(tasks, doc_to_text="A{{question}}"))
    after = items_of(member, tokenizer, local(tasks, doc_to_text="B{{question}}"))
    assert {text[0] for text in before.documents} == {"A"}
    assert {text[0] for text in after.documents} == {"B"}


def test_what_scores_depend_on_is_in_the_content(tokenizer: Any, member: Path, tasks: Path) -> None:
    """The right answers, too, which no request shows."""
    before = items_of(member, tokenizer, local(tasks, doc_to_target="{{label}}"))
    after = items_of(member, tokenizer, local(tasks, doc_to_target="{{3 - label}}"))
    assert arguments_of(before) == arguments_of(after)
    assert json.dumps(before.content) != json.dumps(after.content)
