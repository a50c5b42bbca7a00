"""Items of lm-eval's tasks, as lm-eval puts them to a model.

Templates, few-shot examples and tokenisation are lm-eval's own. Each template is rendered once per run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptailor_merge.calibration.token_trees import Request
from gptailor_merge.errors import ConfigError, DataError
from gptailor_merge.objectives.kinds import Purpose
from gptailor_merge.objectives.tasks.harness import copied, errors_of, load_tasks, seeded
from gptailor_merge.objectives.tasks.metric import Metric, metric_of
from gptailor_merge.objectives.tasks.questions import (
    content,
    purpose_of,
    render_once,
    set_up,
    stratified,
    stratum_of,
    text_of,
)


@dataclass(frozen=True)
class TaskSettings:
    """Says which items of which tasks are taken, and how they are put.

    Attributes:
        tasks: names of tasks or groups that lm-eval knows, or that `include_path` adds.
        include_path: a directory with further tasks.
        split: of their data; the default is told by splits_of.
        few_shot: examples before each item; None keeps the number that a task's config has.
        chat_template: put items as messages of a chat.
        limit: most items taken of each task, chosen by `seed`.
        purpose: the use of the items.
        seed: the run's.
        divided: tasks whose split serves both purposes; each purpose gets its own items.
        without: texts of items that are left out.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    split: str | None = None
    few_shot: int | None = None
    chat_template: bool = False
    limit: int | None = None
    purpose: Purpose = "searched"
    seed: int = 0
    divided: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class TaskItems:
    """Items of one task, ready to be scored.

    Attributes:
        name: of the task.
        split: the one that the items come from.
        is_test: True where this is the task's test split.
        ids: positions of the items in the split, in the order in which they are scored.
        documents: texts of the items in that order, white space evened out.
        task: lm-eval's.
        instances: lm-eval's requests, item by item.
        requests: for each instance, the requests for likelihoods that it takes: one, or several for a text
            longer than a model's context, which is scored in windows; none where answers are generated.
    """

    name: str
    split: str
    is_test: bool
    ids: tuple[int, ...]
    documents: tuple[str, ...]
    task: Any
    instances: tuple[tuple[Any, ...], ...]
    requests: tuple[tuple[tuple[Request, ...], ...], ...]

    @property
    def generates(self) -> bool:
        """True where answers are generated."""
        return bool(self.task.OUTPUT_TYPE == "generate_until")

    @property
    def content(self) -> list[Any]:
        """The texts that scores depend on besides the requests."""
        rendered = [str(content(self.task, instances[0].doc)) for instances in self.instances]
        return [self.name, str(self.task.VERSION), rendered]

    def part(self, numbers: Sequence[int]) -> TaskItems:
        """Returns some of the items, by their place in the order."""
        return replace(
            self,
            ids=tuple(self.ids[n] for n in numbers),
            documents=tuple(self.documents[n] for n in numbers),
            instances=tuple(self.instances[n] for n in numbers),
            requests=tuple(self.requests[n] for n in numbers),
        )

    def metric(self, name: str | None) -> Metric:
        """Returns a metric of the task, see metric.metric_of."""
        return metric_of(self.name, self.task, name)


def splits_of(settings: TaskSettings) -> dict[str, str]:
    """Returns task -> the split that its items are taken from.

    It is the split of the settings. By default the search takes the validation split, else the training
    split, else the test split; the held-out set takes the test split, else these.

    Raises:
        ConfigError: an unknown task or split.
        DataError: the data cannot be loaded.
    """
    return {
        name: _split_of(name, task, settings)
        for name, task in load_tasks(settings.tasks, settings.include_path).items()
    }


def load_items(settings: TaskSettings, encoder: Any) -> list[TaskItems]:
    """Loads the tasks' items as `lm_eval.simple_evaluate` would put them to a model.

    Args:
        encoder: see harness.encoder.

    Raises:
        ConfigError: an unknown task or split, a task that asks what no search can answer, no items.
        DataError: the data cannot be loaded, or do not fit the task.
    """
    items = []
    for name, task in load_tasks(settings.tasks, settings.include_path).items():
        with errors_of(name), seeded():
            items.append(_items_of(name, copied(task), settings, encoder))
    return items


def _split_of(name: str, task: Any, settings: TaskSettings) -> str:
    config = task.config
    order = [config.validation_split, config.training_split, config.test_split]
    if settings.purpose == "held_out":
        order = [order[-1], *order[:-1]]
    split = settings.split or next((candidate for candidate in order if candidate is not None), None)
    splits = list(getattr(task, "dataset", None) or ())
    if split not in splits:
        asked = "none" if split is None else repr(split)
        raise ConfigError(f"task {name}: no such split, found {asked}; known are {', '.join(splits)}")
    return str(split)


def _items_of(name: str, task: Any, settings: TaskSettings, encoder: Any) -> TaskItems:
    _refuse_strange(name, task)
    split = _split_of(name, task, settings)
    is_test = split == task.config.test_split
    documents = task.dataset[split]
    if task.config.process_docs is not None:
        documents = task.config.process_docs(documents)
    documents = list(documents)
    texts = [text_of(task, document) for document in documents]
    order = _order(name, task, split, documents, texts, settings)
    ascending = sorted(order)
    set_up(task, split, [documents[n] for n in ascending], settings.few_shot)
    task.build_all_requests(
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template,
        chat_template=encoder.apply_chat_template if settings.chat_template else None,
    )
    request_types = {instance.request_type for instance in task.instances}
    if request_types != {"loglikelihood" if task.OUTPUT_TYPE == "multiple_choice" else task.OUTPUT_TYPE}:
        raise ConfigError(f"task {name}: it asks in ways of its own ({', '.join(sorted(request_types))})")
    by_item: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_item.setdefault(ascending[instance.doc_id], []).append(instance)
    instances = tuple(tuple(by_item[item]) for item in order)
    render_once(task)
    return TaskItems(
        name,
        split,
        is_test,
        tuple(order),
        tuple(texts[item] for item in order),
        task,
        instances,
        tuple(tuple(_encode(name, instance, encoder) for instance in item) for item in instances),
    )


def _order(
    name: str, task: Any, split: str, documents: Sequence[Any], texts: Sequence[str], settings: TaskSettings
) -> list[int]:
    """Chooses items and returns their positions in the order in which they are scored."""
    on_this_side = [
        n
        for n, text in enumerate(texts)
        if name not in settings.divided or purpose_of(text) == settings.purpose
    ]
    chosen = [n for n in on_this_side if texts[n] not in settings.without]
    if not chosen:
        raise ConfigError(f"task {name}: no items in the split {split!r}")
    strata = [stratum_of(task, documents[n]) for n in chosen]
    if task.OUTPUT_TYPE == "multiple_choice" and not any(strata):
        raise ConfigError(f"task {name}: no right answers in the split {split!r}; expected another")
    return [chosen[n] for n in stratified(strata, settings.seed)][: settings.limit]


def _refuse_strange(name: str, task: Any) -> None:
    """Refuses what lm-eval refuses by default, and what a language model of text cannot answer."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"task {name}: it runs code that models write, which lm-eval calls unsafe")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task {name}: it asks about images or sound; expected a task of text")
    if not hasattr(task, "fewshot_cfg"):
        raise ConfigError(f"task {name}: it is code of its own; expected one that lm-eval's YAML describes")
    if task.config.filter_list and task.OUTPUT_TYPE != "generate_until":
        raise ConfigError(f"task {name}: it filters likelihoods; expected filters of generated answers only")


def _encode(name: str, instance: Any, encoder: Any) -> tuple[Request, ...]:
    """Returns the requests for likelihoods that an instance takes; none where an answer is generated."""
    if instance.request_type == "generate_until":
        return ()
    encoder.recorded = []
    getattr(encoder, instance.request_type)([instance], disable_tqdm=True)
    longest = encoder.max_length
    for context, continuation in encoder.recorded:
        if not (context and 0 < len(continuation) <= longest):
            raise DataError(
                f"task {name}: an answer of {len(continuation)} tokens, found {instance.args[-1][:60]!r}; "
                f"expected 1 to {longest}, behind a question"
            )
    return tuple(
        Request(tuple((context + continuation)[-longest - 1 :]), len(continuation))
        for context, continuation in encoder.recorded
    )
