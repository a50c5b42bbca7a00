"""A config's objectives, gates and held-out set become what is measured, and on what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.texts import TextSource, TokenSet, tokenize
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, InputError, KeyPath, Problem
from gptailor_merge.objectives.configs import (
    DatasetConfig,
    ObjectiveConfig,
    RepetitionConfig,
    TaskConfig,
    TextConfig,
)
from gptailor_merge.objectives.costs import cost
from gptailor_merge.objectives.kl import build_kl
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import Forward, Objective, UnitSet
from gptailor_merge.objectives.repetition import repetition
from gptailor_merge.objectives.tasks.documents import Part
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.likelihood import objective, takes_trees
from gptailor_merge.objectives.tasks.task_items import (
    SMOOTH,
    OfTasks,
    TaskItems,
    TaskSettings,
    load_items,
    splits_of,
)
from gptailor_merge.scoring.gap import Pair
from gptailor_merge.scoring.gates import PREFIX
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.scoring.teachers import Teachers


@dataclass(frozen=True)
class Items:
    """Which items of a task an objective is measured on.

    Attributes:
        section: of the config: objectives, gates or held_out.
        ids: positions in the split, in the order in which rungs take them.
    """

    section: str
    objective: str
    task: str
    split: str
    ids: tuple[int, ...]


SECTIONS = ("objectives", "gates", "held_out")


@dataclass(frozen=True)
class Measures:
    """Everything that a run measures.

    Attributes:
        searched, gates, held_out: in the order of the config, and after it what is reported besides.
        pairs: which of what is searched on has a counterpart that is held out.
        items: which items of tasks are scored.
        texts: what maps are fitted to.
        warnings: sentences that belong beside every number that is reported.
    """

    searched: Passes
    gates: Passes
    held_out: Passes
    pairs: tuple[Pair, ...]
    items: tuple[Items, ...]
    texts: tuple[TokenSet, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Measure:
    """An objective on its way: one of texts waits for the batches.

    Attributes:
        path: where the config says it.
    """

    path: KeyPath
    config: ObjectiveConfig
    sets: Sequence[TokenSet | UnitSet]
    items: tuple[TaskItems, ...] = ()
    made: Objective | None = None


def measures(
    config: SearchConfig, tokenizer: PreTrainedTokenizerBase, teachers: Teachers, out_dtype: torch.dtype
) -> Measures:
    """What is searched on, kept to, and reported on.

    Args:
        out_dtype: of the written model.

    Raises:
        ConfigError: data or tasks that are wrong, a test split that is searched on without leave, or
            something that is both searched on and held out.
    """
    reader = _Reader(config, tokenizer, teachers, out_dtype)
    sections = {"objectives": config.objectives, "gates": config.gates, "held_out": reported(config)}
    divided = reader.divided(sections)
    searching = {name: reader.section(name, sections[name], divided) for name in ("objectives", "gates")}
    searched = [measure for some in searching.values() for measure in some]
    texts = reader.texts(searching["objectives"])
    tested = [
        Problem((*measure.path, "split"), f"{items.name}: {items.split!r} is its test split")
        for measure in searched
        for items in measure.items
        if items.is_test
    ]
    if tested and not config.allow_test_split:
        hint = "scores on it would tell nothing about other models; expected another, or --allow-test-split"
        raise ConfigError([Problem(p.path, f"{p.message}, {hint}") for p in tested])
    if config.drop_leaks:
        reader.without = frozenset(text for one in _sets(searched, texts) for text in one.documents)
    reporting = reader.section("held_out", sections["held_out"], divided)
    _refuse_leaks(_sets(searched, texts), reporting)
    made = {**searching, "held_out": reporting}
    passes = {name: _passes(name, some, teachers, config.batch_tokens) for name, some in made.items()}
    return Measures(
        searched=passes["objectives"],
        gates=passes["gates"],
        held_out=passes["held_out"],
        pairs=tuple(_pairs(made, passes)),
        items=tuple(item for name in SECTIONS for item in _items(name, made[name], passes[name])),
        texts=tuple(texts),
        warnings=tuple(
            dict.fromkeys(
                f"{p.message}, and was searched on: scores on it flatter this model and no other"
                for p in tested
            )
        ),
    )


def reported(config: SearchConfig) -> tuple[ObjectiveConfig, ...]:
    """The held-out section, and what of the tasks that are searched on is not named there.

    A task is reported by the metric that is searched on, and where that is a smooth one also by its first.
    """
    known = [one for one in config.held_out if isinstance(one, TaskConfig)]
    # Tasks that differ in nothing but their names are one objective.
    added: dict[TaskConfig, list[str]] = {}
    for searched in config.objectives:
        if not isinstance(searched, TaskConfig):
            continue
        metrics = (searched.metric, None) if searched.metric in SMOOTH else (searched.metric,)
        for metric in metrics:
            for task in searched.tasks:
                named = [one for one in known if task in one.tasks]
                if any(one.metric == metric for one in named):
                    continue
                like = named[0] if named else searched.model_copy(update={"split": None})
                added.setdefault(like.model_copy(update={"metric": metric, "tasks": ()}), []).append(task)
    further = (one.model_copy(update={"tasks": tuple(dict.fromkeys(tasks))}) for one, tasks in added.items())
    return (*config.held_out, *further)


class _Reader:
    """Reads what objectives are measured on; what two of them share is read once."""

    def __init__(
        self,
        config: SearchConfig,
        tokenizer: PreTrainedTokenizerBase,
        teachers: Teachers,
        out_dtype: torch.dtype,
    ) -> None:
        self._config, self._tokenizer, self._teachers = config, tokenizer, teachers
        self._out_dtype = out_dtype
        self.without: frozenset[str] = frozenset()
        self._known: dict[TaskSettings, tuple[list[TaskItems], bool]] = {}

    @cached_property
    def _encoder(self) -> object:
        return encoder(self._teachers.family.base.directory, self._tokenizer)

    def divided(self, sections: Mapping[str, Sequence[ObjectiveConfig]]) -> frozenset[str]:
        """The tasks of which one split is both searched on and held out; each gets a part of it."""
        splits: dict[Part, set[tuple[str, str]]] = {"searched": set(), "held_out": set()}
        for section, configs in sections.items():
            for index, config in enumerate(configs):
                if isinstance(config, TaskConfig):
                    with _naming((section, index, "tasks")):
                        splits[_part(section)] |= set(splits_of(self._settings(section, config)).items())
        return frozenset(task for task, _ in splits["searched"] & splits["held_out"])

    def section(
        self, section: str, configs: Sequence[ObjectiveConfig], divided: frozenset[str]
    ) -> list[_Measure]:
        """Everything that one section of the config measures."""
        made: list[_Measure] = []
        for index, config in enumerate(configs):
            with _naming((section, index, "tasks" if isinstance(config, TaskConfig) else "data")):
                measure = self._measure((section, index), config, divided)
            if section != "held_out" or not any(_same(measure, other) for other in made):
                made.append(measure)
        return made

    def texts(self, searching: Sequence[_Measure]) -> list[TokenSet]:
        """What maps are fitted to; none where none are."""
        config = self._config.repair
        if not config.finalists:
            return []
        if config.data is not None:
            with _naming(("repair", "data")):
                return list(token_sets(config.data, self._tokenizer, config.tokens, config.sequence_length))
        texts = [measure for measure in searching if isinstance(measure.config, TextConfig)]
        sets = (one for measure in texts for one in measure.sets if isinstance(one, TokenSet))
        return list({one.digest: one for one in sets}.values())

    def _measure(self, path: KeyPath, config: ObjectiveConfig, divided: frozenset[str]) -> _Measure:
        if isinstance(config, TaskConfig):
            settings = self._settings(str(path[0]), config)
            return self._task(path, config, replace(settings, divided=divided, without=self.without))
        if isinstance(config, TextConfig):
            sets = token_sets(config.data, self._tokenizer, config.tokens, config.sequence_length)
            return _Measure(path, config, sets)
        made: Objective
        if isinstance(config, RepetitionConfig):
            made = repetition(
                config.kind,
                {name: _source(source) for name, source in config.data.items()},
                self._tokenizer,
                prompts=config.prompts,
                prompt_tokens=config.prompt_tokens,
                new_tokens=config.new_tokens,
            )
        else:
            device = self._teachers.device
            made = cost(config.kind, config.kind, dtype=self._out_dtype, device=device, tokens=config.tokens)
        return _Measure(path, config, made.sets, made=made)

    def _settings(self, section: str, config: TaskConfig) -> TaskSettings:
        return TaskSettings(
            tasks=config.tasks,
            include_path=Path(config.include_path) if config.include_path else None,
            split=config.split,
            few_shot=config.few_shot,
            chat_template=config.chat_template,
            limit=config.limit,
            part=_part(section),
            seed=self._config.seed,
        )

    def _task(self, path: KeyPath, config: TaskConfig, settings: TaskSettings) -> _Measure:
        if settings not in self._known:
            items = load_items(settings, self._encoder)
            _, forward = self._teachers.get("base")
            self._known[settings] = items, takes_trees(items, forward, self._teachers.device)
        items, trees = self._known[settings]
        made = objective(items, config.metric, trees=trees, lm=self._encoder)
        return _Measure(path, config, made.sets, tuple(items), made)


def _part(section: str) -> Part:
    return "held_out" if section == "held_out" else "searched"


@contextmanager
def _naming(path: KeyPath) -> Iterator[None]:
    """Say where in the config the thing is that is wrong."""
    try:
        yield
    except InputError as error:
        raise ConfigError(Problem(path, str(error))) from None


def _metric(measure: _Measure) -> str:
    made = measure.made
    return made.metric.name if isinstance(made, OfTasks) else measure.config.kind


def _same(one: _Measure, other: _Measure) -> bool:
    """Whether two measures are of one metric on the same items."""
    digests = [[s.digest for s in measure.sets] for measure in (one, other)]
    return bool(one.items and digests[0] == digests[1] and _metric(one) == _metric(other))


def _names(section: str, measures: Sequence[_Measure]) -> list[str]:
    """What the objectives are called: their metric or kind, numbered where several are of one."""
    names = [_metric(measure) for measure in measures]
    prefix = PREFIX if section == "gates" else ""
    return [
        prefix + (name if names.count(name) == 1 else f"{name}-{names[: index + 1].count(name)}")
        for index, name in enumerate(names)
    ]


def _passes(section: str, prepared: Sequence[_Measure], teachers: Teachers, batch_tokens: int) -> Passes:
    in_rows = [one for m in prepared for one in m.sets if isinstance(one, TokenSet)]
    rungs = layout(in_rows, batch_tokens, device=teachers.device)
    batches = [batch for rung in rungs for batch in rung]
    objectives: list[Objective] = []
    for name, measure in zip(_names(section, prepared), prepared, strict=True):
        if measure.made is not None:
            objectives.append(replace(measure.made, name=name))  # type: ignore[type-var]
        else:
            assert isinstance(measure.config, TextConfig)
            sets = tuple(one for one in measure.sets if isinstance(one, TokenSet))
            objectives.append(build(name, measure.config, sets, teachers.get, batches))
    return Passes(objectives, rungs)


def _items(section: str, measures: Sequence[_Measure], passes: Passes) -> Iterator[Items]:
    for measure, made in zip(measures, passes.objectives, strict=True):
        for items in measure.items:
            yield Items(section, made.name, items.name, items.split, items.ids)


def _pairs(made: Mapping[str, Sequence[_Measure]], passes: Mapping[str, Passes]) -> Iterator[Pair]:
    """What is searched on, each with the first that is held out and measures the same."""
    reporting = list(zip(made["held_out"], passes["held_out"].objectives, strict=True))
    for measure, searched in zip(made["objectives"], passes["objectives"].objectives, strict=True):
        for other, held_out in reporting:
            names = {one.name for one in other.sets}
            sets = tuple(
                one.name
                for one in measure.sets
                if one.name in names and _teacher(measure, one.name) == _teacher(other, one.name)
            )
            if sets and _metric(measure) == _metric(other):
                yield Pair(searched.name, held_out.name, sets)
                break


def _teacher(measure: _Measure, set_name: str) -> str | None:
    return measure.config.teacher_of(set_name) if isinstance(measure.config, TextConfig) else None


def _sets(searched: Sequence[_Measure], texts: Sequence[TokenSet]) -> list[TokenSet | UnitSet]:
    """All that a search looks at."""
    return [*(one for measure in searched for one in measure.sets), *texts]


def _refuse_leaks(searched: Sequence[TokenSet | UnitSet], reporting: Sequence[_Measure]) -> None:
    """The held-out set holds nothing that is searched on, whatever it is called there.

    Raises:
        ConfigError: names the data or task, how many documents or items, and how the first begins.
    """
    named = {text: one.name for one in searched for text in one.documents}
    problems = []
    for measure in reporting:
        for one in measure.sets:
            leaked = sorted(one.documents & named.keys())
            if not leaked:
                continue
            key: KeyPath = ("tasks",) if measure.items else ("data", one.name)
            what, hint = "documents", "expected other documents"
            if measure.items:
                what = f"items of {one.name}"
                hint = "expected other items; drop_leaks: true leaves them out"
            message = (
                f"{len(leaked)} of {len(one.documents)} {what} are also searched on "
                f"(as {named[leaked[0]]}), found {leaked[0][:60]!r}; {hint}"
            )
            problems.append(Problem((*measure.path, *key), message))
    if problems:
        raise ConfigError(problems)


def token_sets(
    data: Mapping[str, str | DatasetConfig],
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    sequence_length: int,
) -> tuple[TokenSet, ...]:
    """Tokenise every source; `tokens` in all, shared evenly."""
    share = max(2, tokens // len(data))
    return tuple(
        tokenize(name, _source(source), tokenizer, tokens=share, sequence_length=sequence_length)
        for name, source in data.items()
    )


def build(
    name: str,
    config: TextConfig,
    sets: tuple[TokenSet, ...],
    teacher: Callable[[str], tuple[str, Forward]],
    batches: Sequence[Batch],
) -> Objective:
    """The objective that a config describes."""
    if config.kind == "perplexity":
        return Perplexity(name, sets)
    teachers = {s.name: teacher(config.teacher_of(s.name)) for s in sets}
    return build_kl(name, sets, teachers=teachers, top_k=config.top_k, batches=batches)


def _source(source: str | DatasetConfig) -> TextSource:
    if isinstance(source, str):
        return TextSource(source)
    return TextSource(
        source.dataset, is_dataset=True, config=source.config, split=source.split, column=source.column
    )
