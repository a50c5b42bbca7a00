"""Items of lm-eval's tasks, as lm-eval puts them to a model, and how they are scored.

Templates, few-shot examples, tokenisation and metrics are lm-eval's own. What is rendered is rendered once
per run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.calibration.token_trees import Request
from gptailor_merge.digests import digest
from gptailor_merge.errors import ConfigError, DataError, ScoringError
from gptailor_merge.objectives.protocols import UnitSet
from gptailor_merge.objectives.tasks.documents import (
    Part,
    content,
    part_of,
    render_once,
    set_up,
    stratified,
    stratum_of,
    text_of,
)
from gptailor_merge.objectives.tasks.harness import errors_of, load_tasks, own, seeded

MARGIN, CHOICE_LOSS = "margin", "choice_loss"


SMOOTH = (MARGIN, CHOICE_LOSS)
"""Our metrics of multiple choice beside lm-eval's accuracy, in nats: how much likelier the right answer is
than all others together; and the negative log-likelihood of the right one among them, log(1 + exp(−margin)),
in which nothing is gained by being surer of what is right already."""


@dataclass(frozen=True)
class TaskSettings:
    """Which items of which tasks, and how they are put.

    Attributes:
        tasks: names of tasks or groups that lm-eval knows, or that `include_path` gives.
        split: of their data; default see splits_of.
        few_shot: examples before each item; None leaves a task as its config has it.
        limit: so many items of each task, chosen by `seed`.
        part: what the items are for.
        divided: tasks whose split serves for both parts; each gets its own items.
        without: texts of items that are left out.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    split: str | None = None
    few_shot: int | None = None
    chat_template: bool = False
    limit: int | None = None
    part: Part = "searched"
    seed: int = 0
    divided: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Metric:
    """How a task's items are scored.

    Attributes:
        name: as users know it: the key, and the filter where it is not the task's first.
        key, filter: of lm-eval's results.
        unit: how users see the mean that is minimised.
    """

    name: str
    key: str
    filter: str
    higher_is_better: bool
    unit: str

    @property
    def direction(self) -> str:
        """Of the natural value."""
        return "maximize" if self.higher_is_better else "minimize"

    def of(self, values: Mapping[str, Any]) -> float:
        """What is minimised of an item's values; a pair is of a metric whose items have weights.

        Raises:
            ScoringError: the task gives an item no such value.
        """
        if self.key not in values:
            raise ScoringError(f"an item has no {self.key}, found {', '.join(values)}")
        value = values[self.key]
        value = value[0] if isinstance(value, tuple) else value
        return float(value) if self.unit == "plain" else -float(value)


@dataclass(frozen=True, eq=False)
class TaskItems:
    """Items of one task, ready to be scored.

    Attributes:
        name: of the task.
        ids: positions of the items in the split, in the order in which they are scored.
        documents: their texts, white space evened out, in that order.
        is_test: whether the split is the task's test split.
        task: lm-eval's.
        instances: lm-eval's requests, item by item.
        requests: of each of these the requests for likelihoods that it takes: one, but for a text
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
        """Whether the answers are generated."""
        return bool(self.task.OUTPUT_TYPE == "generate_until")

    @property
    def content(self) -> list[Any]:
        """All that scores depend on besides the requests, as text."""
        rendered = [str(content(self.task, some[0].doc)) for some in self.instances]
        return [self.name, str(self.task.VERSION), rendered]

    def metric(self, name: str | None) -> Metric:
        """A metric that items have one by one; default the task's first.

        Args:
            name: its key; of a task with several filters perhaps with one: "exact_match,strict-match".

        Raises:
            ConfigError: the task has no such metric, or its value is no mean over items.
        """
        known = list(self.task.aggregation())
        filters = [ensemble.name for ensemble in self.task._filters]
        key, _, chosen = (name or known[0]).partition(",")
        smooth = SMOOTH if self.task.OUTPUT_TYPE == "multiple_choice" else ()
        if key in smooth and not chosen:
            higher = key == MARGIN
            return Metric(key, key, filters[0], higher, "negated" if higher else "nats")
        if key not in known:
            hint = ", ".join([*known, *smooth])
            raise ConfigError(f"task {self.name}: no such metric, found {key!r}; known are {hint}")
        if chosen and chosen not in filters:
            raise ConfigError(
                f"task {self.name}: no such filter, found {chosen!r}; known are {', '.join(filters)}"
            )
        chosen = chosen or filters[0]
        return Metric(key if chosen == filters[0] else f"{key},{chosen}", key, chosen, *self._scale(key))

    def _scale(self, key: str) -> tuple[bool, str]:
        """Whether higher is better, and the unit."""
        from lm_eval.api import metrics

        units = {
            metrics.mean: "plain",
            metrics.perplexity: "perplexity",
            metrics.weighted_perplexity: "perplexity",
            metrics.bits_per_byte: "bits",
        }
        aggregation = self.task.aggregation()[key]
        if aggregation not in units:
            by = getattr(aggregation, "__name__", "code of its own")
            raise ConfigError(
                f"task {self.name}: {key} is aggregated by {by}, and a search needs a mean over items; "
                f"its metrics are {', '.join(self.task.aggregation())}"
            )
        # The mean that stands behind a perplexity is of log-likelihoods.
        higher = units[aggregation] == "plain" and bool(self.task.higher_is_better()[key])
        return higher, "negated" if higher else units[aggregation]


class OfTasks:
    """What objectives share that are a metric of tasks.

    Attributes:
        kind: how answers are got; part of the fingerprint.
        items: set name -> the items.
    """

    kind: ClassVar[str]
    metric: Metric
    sets: tuple[TokenSet | UnitSet, ...]
    items: Mapping[str, TaskItems]

    @property
    def direction(self) -> str:
        return self.metric.direction

    @property
    def fingerprint(self) -> str:
        parts = [(one.digest, self.items[one.name].content) for one in self.sets]
        return digest([self.kind, self.metric.name, parts])


def common_metric(items: Sequence[TaskItems], name: str | None) -> Metric:
    """The metric that tasks share.

    Raises:
        ConfigError: see TaskItems.metric, or tasks that differ in it.
    """
    metrics = {made.metric(name) for made in items}
    if len(metrics) > 1:
        names = sorted({f"{m.name} ({m.unit})" for m in metrics})
        raise ConfigError(
            f"the tasks differ in their metric: {', '.join(names)}; expected one objective for each"
        )
    (one,) = metrics
    return one


def splits_of(settings: TaskSettings) -> dict[str, str]:
    """Task -> the split that its items are taken from.

    That of the settings, else of what is searched on the validation split, else the training split; of
    what is held out the test split, else these.

    Raises:
        ConfigError: an unknown task or split.
        DataError: the data cannot be loaded.
    """
    return {
        name: _split_of(name, task, settings)
        for name, task in load_tasks(settings.tasks, settings.include_path).items()
    }


def load_items(settings: TaskSettings, encoder: Any) -> list[TaskItems]:
    """The tasks' items, as `lm_eval.simple_evaluate` would put them to a model.

    Args:
        encoder: see `encoder`.

    Raises:
        ConfigError: an unknown task or split, a task that asks what no search can answer, no items.
        DataError: the data cannot be loaded, or do not fit the task.
    """
    found = []
    for name, task in load_tasks(settings.tasks, settings.include_path).items():
        with errors_of(name), seeded():
            found.append(_items_of(name, own(task), settings, encoder))
    return found


def _split_of(name: str, task: Any, settings: TaskSettings) -> str:
    config = task.config
    order = [config.validation_split, config.training_split, config.test_split]
    if settings.part == "held_out":
        order = [order[-1], *order[:-1]]
    split = settings.split or next((one for one in order if one is not None), None)
    splits = list(getattr(task, "dataset", None) or ())
    if split not in splits:
        found = "none" if split is None else repr(split)
        raise ConfigError(f"task {name}: no such split, found {found}; known are {', '.join(splits)}")
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
    own = [
        n for n, text in enumerate(texts) if name not in settings.divided or part_of(text) == settings.part
    ]
    chosen = [n for n in own if texts[n] not in settings.without]
    if not chosen:
        raise ConfigError(f"task {name}: no items in the split {split!r}")
    strata = [stratum_of(task, documents[n]) for n in chosen]
    if task.OUTPUT_TYPE == "multiple_choice" and not any(strata):
        raise ConfigError(f"task {name}: no right answers in the split {split!r}; expected another")
    order = [chosen[n] for n in stratified(strata, settings.seed)][: settings.limit]
    ascending = sorted(order)
    set_up(task, split, [documents[n] for n in ascending], settings.few_shot)
    task.build_all_requests(
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template,
        chat_template=encoder.apply_chat_template if settings.chat_template else None,
    )
    kinds = {instance.request_type for instance in task.instances}
    if kinds != {"loglikelihood" if task.OUTPUT_TYPE == "multiple_choice" else task.OUTPUT_TYPE}:
        raise ConfigError(f"task {name}: it asks in ways of its own ({', '.join(sorted(kinds))})")
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
        tuple(tuple(_encode(name, one, encoder) for one in some) for some in instances),
    )


def _refuse_strange(name: str, task: Any) -> None:
    """Refuse what lm-eval refuses by default, and what a language model of text cannot answer."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"task {name}: it runs code that models write, which lm-eval calls unsafe")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"task {name}: it asks about images or sound; expected a task of text")
    if not hasattr(task, "fewshot_cfg"):
        raise ConfigError(f"task {name}: it is code of its own; expected one that lm-eval's YAML describes")
    if task.config.filter_list and task.OUTPUT_TYPE != "generate_until":
        raise ConfigError(f"task {name}: it filters likelihoods; expected filters of generated answers only")


def _encode(name: str, instance: Any, encoder: Any) -> tuple[Request, ...]:
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
