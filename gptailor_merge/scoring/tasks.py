"""lm-eval's tasks as objectives.

Templates, few-shot examples, tokenisation, metrics and their aggregation are lm-eval's own and done
once per run, but for the metrics; what a candidate needs are the likelihoods of the answers.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from gptailor_merge.errors import ConfigError, DataError
from gptailor_merge.scoring.batching import layout
from gptailor_merge.scoring.items import ItemSet, Request, item_set
from gptailor_merge.scoring.objectives import Forward, Prediction, Score, digest, log_likelihood

MARGIN = "margin"
"""Our metric beside lm-eval's: how much likelier, in nats, the right answer is than all others together."""
FEW_SHOT_SEED = 1234
"""lm-eval's default."""
SEARCHED_SHARE = 0.5
"""Of a split that is both searched on and held out."""

Part = Literal["searched", "held_out"] | None
"""Which part of a split; None is all of it."""


def task_manager(names: Sequence[str], include_path: Path | None) -> Any:
    """lm-eval's, after a look at the names: it would load data before it complains.

    Raises:
        ConfigError: an unknown task, or no such directory.
    """
    from lm_eval.tasks import TaskManager  # takes seconds

    if include_path is not None and not include_path.is_dir():
        raise ConfigError(
            f"{include_path}: no such directory; expected one with tasks, YAML files of lm-eval"
        )
    manager = TaskManager(include_path=include_path)
    known = manager.all_tasks
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists them"
            raise ConfigError(f"lm-eval knows no task, found {name!r}; {hint}")
    return manager


@dataclass(frozen=True)
class TaskSettings:
    """Which items of which tasks, and how they are put.

    Attributes:
        tasks: names of tasks or groups that lm-eval knows, or that `include_path` gives.
        split: of their data; default the validation split, or what a task has instead.
        few_shot: examples before each item; None leaves a task as its config has it.
        limit: so many items of each task, chosen by `seed`.
        part: of the split.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    split: str | None = None
    few_shot: int | None = None
    chat_template: bool = False
    limit: int | None = None
    part: Part = None
    seed: int = 0


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

    def metric(self, name: str | None) -> Metric:
        """A metric that items have one by one; default the task's first.

        Raises:
            ConfigError: the task has no such metric, or its value is no mean over items.
        """
        known = list(self.task.aggregation())
        name = name or known[0]
        if name == MARGIN:
            if self.task.OUTPUT_TYPE != "multiple_choice":
                raise ConfigError(f"task {self.name}: margin is of multiple-choice tasks; known are {known}")
            return Metric(MARGIN, True, "negated")
        if name not in known:
            extra = [MARGIN] if self.task.OUTPUT_TYPE == "multiple_choice" else []
            raise ConfigError(
                f"task {self.name}: no such metric, found {name!r}; known are {[*known, *extra]}"
            )
        aggregation = getattr(self.task.aggregation()[name], "__name__", "")
        higher = bool(self.task.higher_is_better()[name])
        if aggregation == "mean":
            return Metric(name, higher, "negated" if higher else "plain")
        if aggregation in _EXPONENTIAL:
            return Metric(name, False, _EXPONENTIAL[aggregation])
        raise ConfigError(
            f"task {self.name}: {name} is aggregated by {aggregation or 'its own code'}, which a search "
            f"cannot use: it is no mean over items; known are {known}"
        )


_EXPONENTIAL = {"perplexity": "perplexity", "weighted_perplexity": "perplexity", "bits_per_byte": "bits"}
"""lm-eval's aggregations of log-likelihoods, and the unit in which their mean is shown."""


@dataclass(frozen=True)
class Metric:
    """How a task's items are scored.

    Attributes:
        unit: how users see the mean that is minimised.
    """

    name: str
    higher_is_better: bool
    unit: str


def load_items(settings: TaskSettings, encoder: Any) -> list[TaskItems]:
    """The tasks' items, as `lm_eval.simple_evaluate` would put them to a model.

    Args:
        encoder: see `encoder`.

    Raises:
        ConfigError: an unknown task or split.
        DataError: the data cannot be loaded.
    """
    manager = task_manager(settings.tasks, settings.include_path)
    try:
        loaded = manager.load(list(settings.tasks))["tasks"]
    except Exception as error:  # tasks raise what their data and their own code raise
        message = f"{', '.join(settings.tasks)}: {type(error).__name__}: {error}"
        raise DataError(message) from error
    return [_items_of(name, task, settings, encoder) for name, task in loaded.items()]


def _items_of(name: str, task: Any, settings: TaskSettings, encoder: Any) -> TaskItems:
    config = task.config
    split = settings.split or config.validation_split or config.training_split or config.test_split
    splits = list(task.dataset)
    if split not in splits:
        raise ConfigError(f"task {name}: no such split, found {split!r}; known are {', '.join(splits)}")
    is_test = split == config.test_split
    if settings.few_shot is not None and config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=settings.few_shot)
    elif config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    task.set_config(key="test_split", value=split)
    documents = list(task.eval_docs)
    texts = [_text(task, document) for document in documents]
    chosen = [n for n, text in enumerate(texts) if settings.part in (None, part_of(text))]
    if not chosen:
        raise ConfigError(f"task {name}: no items in the split {split!r}")
    strata = [_stratum(task, documents[n]) for n in chosen]
    order = [chosen[n] for n in stratified(strata, settings.seed)][: settings.limit]
    ascending = sorted(order)
    task.build_all_requests(
        samples=ascending,
        apply_chat_template=settings.chat_template,
        fewshot_as_multiturn=settings.chat_template,
        chat_template=encoder.apply_chat_template if settings.chat_template else None,
    )
    by_item: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_item.setdefault(instance.doc_id, []).append(instance)
    _render_once(task)
    place = {item: number for number, item in enumerate(ascending)}
    instances = tuple(tuple(by_item[place[item]]) for item in order)
    return TaskItems(
        name,
        split,
        is_test,
        tuple(order),
        tuple(texts[item] for item in order),
        task,
        instances,
        tuple(tuple(_encode(instance, encoder) for instance in some) for some in instances),
    )


def part_of(text: str) -> Part:
    """On which side of a divided split an item falls: a matter of its text alone."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
    return "searched" if share < SEARCHED_SHARE else "held_out"


def stratified(strata: Sequence[Any], seed: int) -> list[int]:
    """A random order of which every beginning holds each stratum in about its share."""
    rng = np.random.RandomState(seed)
    members: dict[Any, list[int]] = {}
    for number in rng.permutation(len(strata)).tolist():
        members.setdefault(strata[number], []).append(number)
    # Each stratum is spread evenly over [0, 1], from a start of its own.
    starts = {stratum: rng.uniform() for stratum in sorted(members, key=str)}
    keyed = [
        ((rank + starts[stratum]) / len(some), number)
        for stratum, some in members.items()
        for rank, number in enumerate(some)
    ]
    return [number for _, number in sorted(keyed)]


def _text(task: Any, document: Any) -> str:
    """What an item is about; equal for items that are the same question."""
    parts = [str(task.doc_to_text(document) or "")]
    if task.OUTPUT_TYPE == "multiple_choice":
        parts += sorted(map(str, task.doc_to_choice(document)))
    else:
        parts.append(str(task.doc_to_target(document)))
    return " ".join(" ".join(parts).split())


def _stratum(task: Any, document: Any) -> Any:
    """Items alike in this are spread evenly: the place of the right answer."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    return tuple(_right(task, document))


def _right(task: Any, document: Any) -> list[int]:
    """Which options of a multiple-choice item are right."""
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(right, str):
        return [task.doc_to_choice(document).index(right)]
    return [int(index) for index in right] if isinstance(right, (list, tuple)) else [int(right)]


def _render_once(task: Any) -> None:
    """lm-eval renders an item's templates whenever it is scored; they do not change."""
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, partial(_remembered, getattr(task, name), {}))


def _remembered(render: Any, known: dict[int, tuple[Any, Any]], document: Any, *arguments: Any) -> Any:
    if arguments:
        return render(document, *arguments)
    if id(document) not in known:
        known[id(document)] = document, render(document)  # the document is held: its id stays its own
    return known[id(document)][1]


def encoder(directory: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """lm-eval's language model without weights: it puts requests into tokens as lm-eval does."""
    from lm_eval.models.huggingface import HFLM

    class Encoder(HFLM):  # type: ignore[misc]
        recorded: list[tuple[list[int], list[int]]]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            self.recorded += [(context, continuation) for _, context, continuation in requests]
            return [(0.0, False)] * len(requests)

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return Encoder(pretrained=model, tokenizer=tokenizer)


def _encode(instance: Any, encoder: Any) -> tuple[Request, ...]:
    if instance.request_type == "generate_until":
        return ()
    encoder.recorded = []
    getattr(encoder, instance.request_type)([instance], disable_tqdm=True)
    most = encoder.max_length + 1
    return tuple(
        Request(tuple((context + continuation)[-most:]), len(continuation))
        for context, continuation in encoder.recorded
    )


@dataclass(frozen=True, eq=False)
class TaskLikelihood:
    """A metric of tasks whose answers are scored by their likelihood.

    Attributes:
        items: set name -> the items.
    """

    name: str
    metric: Metric
    sets: tuple[ItemSet, ...]
    items: Mapping[str, TaskItems]
    _rendered: dict[str, list[float]] = field(default_factory=dict, repr=False)

    @property
    def direction(self) -> str:
        return "maximize" if self.metric.higher_is_better else "minimize"

    @property
    def fingerprint(self) -> str:
        parts = [(s.name, s.digest, digest(self.items[s.name].documents)) for s in self.sets]
        return digest(["task", self.metric.name, parts])

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        """Of each token asked for its log-likelihood, and whether it is the likeliest."""
        assert prediction.at is not None
        likeliest = prediction.logits.argmax(-1)[prediction.at] == prediction.next_ids
        return torch.stack([log_likelihood(prediction), likeliest.float()], -1)

    def units(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        items = self._set(set_name)
        first, stop = items.items_of(min(rows), max(rows) + 1)
        asked = items.asked(rows, first, stop)
        of_token = values.reshape(-1, 2)[asked]
        lengths = [length for of_item in items.tokens_of_requests[first:stop] for length in of_item]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        sums = np.add.reduceat(of_token[:, 0], starts).tolist()
        greedy = np.minimum.reduceat(of_token[:, 1], starts).tolist()
        found, at = [], 0
        for number in range(first, stop):
            results: list[Any] = []
            for windows in self.items[set_name].requests[number]:
                after = at + len(windows)
                results.append((sum(sums[at:after]), all(greedy[at:after])))
                at = after
            found.append(self._unit(self.items[set_name], number, results))
        return np.array(found)

    def _unit(self, items: TaskItems, number: int, results: list[Any]) -> float:
        document = items.instances[number][0].doc
        if self.metric.name == MARGIN:
            return -margin([value for value, _ in results], _right(items.task, document))
        if items.task.OUTPUT_TYPE == "loglikelihood_rolling":
            results = [value for value, _ in results]
        return self.unit(items.task.process_results(document, results)[self.metric.name])

    def unit(self, value: Any) -> float:
        """What is added up of an item's value, which is a pair where the items have weights."""
        value = value[0] if isinstance(value, tuple) else value
        return float(value) if self.metric.unit == "plain" else -float(value)

    def size(self, set_name: str, units: int) -> float:
        return sum(self._weights(set_name)[:units])

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """lm-eval's own aggregate, but for the unit."""
        count = self.size(set_name, len(units))
        return Score(sum(units.tolist()) / count, count, self.metric.unit)

    def _set(self, name: str) -> ItemSet:
        return next(items for items in self.sets if items.name == name)

    def _weights(self, set_name: str) -> list[float]:
        """Of each item: 1, or its words or bytes where the metric is a mean over these."""
        if set_name not in self._rendered:
            items = self.items[set_name]
            self._rendered[set_name] = [self._weight(items, n) for n in range(len(items.ids))]
        return self._rendered[set_name]

    def _weight(self, items: TaskItems, number: int) -> float:
        if items.task.OUTPUT_TYPE != "loglikelihood_rolling" or self.metric.name == MARGIN:
            return 1.0
        value = items.task.process_results(items.instances[number][0].doc, [0.0])[self.metric.name]
        return float(value[1]) if isinstance(value, tuple) else 1.0


def margin(likelihoods: Sequence[float], right: Sequence[int]) -> float:
    """log Σ p(right) − log Σ p(wrong), nats."""
    of_right = [value for n, value in enumerate(likelihoods) if n in right]
    of_wrong = [value for n, value in enumerate(likelihoods) if n not in right]
    return _log_sum(of_right) - _log_sum(of_wrong)


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


def likelihood(items: Sequence[TaskItems], metric: str | None, *, trees: bool) -> TaskLikelihood:
    """The objective that is a metric of tasks, which must be of one kind.

    Raises:
        ConfigError: see TaskItems.metric, or tasks that differ in it.
    """
    metrics = {made.metric(metric) for made in items}
    if len(metrics) > 1:
        names = sorted({f"{m.name} ({m.unit})" for m in metrics})
        raise ConfigError(
            f"the tasks differ in their metric: {', '.join(names)}; expected one objective for each"
        )
    (one,) = metrics
    sets = tuple(
        item_set(made.name, _flat(made), trees=trees, documents=frozenset(made.documents)) for made in items
    )
    return TaskLikelihood(one.name, one, sets, {made.name: made for made in items})


def takes_trees(items: Sequence[TaskItems], forward: Forward, device: torch.device) -> bool:
    """Whether a model gives texts that share a row the likelihoods that it gives them alone.

    It is asked on the item with the longest such row: a model that looks less far back than a mask
    allows, or has states that run along a row, does not.
    """
    shared = [requests for made in items for requests in _flat(made) if _tree_length(requests)]
    if not shared:
        return False
    longest = max(shared, key=_tree_length)
    found = []
    for trees in (True, False):
        one = item_set("probe", [longest], trees=trees)
        (batches,) = layout([one], 1, device=device, rungs=(1.0,))
        rows = [row for batch in batches for segment in batch.segments for row in segment.rows]
        try:
            made = [log_likelihood(p) for batch in batches for p in forward(batch)]
        except (TypeError, ValueError, RuntimeError):  # a model that takes no positions or masks
            return False
        found.append(torch.cat(made).float().cpu().numpy()[one.asked(rows, 0, 1)])
    # Elsewhere models compute in 16 bits; what a model must not see costs more than their rounding.
    tolerance = 1e-4 if device.type == "cpu" else 0.05
    in_trees, apart = found
    return bool(np.allclose(in_trees, apart, rtol=tolerance, atol=tolerance))


def _flat(items: TaskItems) -> list[list[Request]]:
    return [[request for windows in of_item for request in windows] for of_item in items.requests]


def _tree_length(requests: Sequence[Request]) -> int:
    """Tokens of the longest row that texts would share."""
    made = item_set("", [requests], trees=True)
    return max((len(row.ids) for row in made.rows if not row.is_text), default=0)
