"""A config's objectives and held-out set become what is measured, and on what."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.config import DatasetConfig, ObjectiveConfig, SearchConfig, TaskConfig, TextConfig
from gptailor_merge.errors import ConfigError, FamilyError, InputError, Problem
from gptailor_merge.recipe.family import Family
from gptailor_merge.scoring.batching import Batch, layout
from gptailor_merge.scoring.calibration import TextSource, TokenSet, tokenize
from gptailor_merge.scoring.objectives import Forward, Objective, Perplexity, Prediction, build_kl, digest
from gptailor_merge.scoring.passes import Passes, predictions_alone
from gptailor_merge.scoring.tasks import (
    MARGIN,
    Part,
    TaskItems,
    TaskLikelihood,
    TaskSettings,
    encoder,
    likelihood,
    load_items,
    takes_trees,
)


@dataclass(frozen=True)
class _Measure:
    """An objective on its way: of a task it is made, of texts it waits for the batches."""

    config: ObjectiveConfig
    sets: tuple[TokenSet, ...]
    items: tuple[TaskItems, ...] = ()
    made: TaskLikelihood | None = None


def measures(
    config: SearchConfig, tokenizer: PreTrainedTokenizerBase, teachers: Teachers
) -> tuple[Passes, Passes]:
    """What is searched on, and what is reported on.

    Raises:
        ConfigError: data or tasks that are wrong, a test split that is searched on without leave, or
            something that is both searched on and held out.
    """
    reader = _Reader(config, tokenizer, teachers)
    reported = with_held_out_tasks(config)
    searched_names = {name for c in config.objectives if isinstance(c, TaskConfig) for name in _where(c)}
    reported_names = {name for c in reported if isinstance(c, TaskConfig) for name in _where(c)}
    shared = searched_names & reported_names
    searching = reader.section(config.objectives, "objectives", "searched", shared)
    reporting = reader.section(reported, "held_out", "held_out", shared)
    if not config.allow_test_split:
        _refuse_test_splits(searching)
    _refuse_leaks([m.sets for m in searching], [m.sets for m in reporting])
    batch_tokens = config.batch_tokens
    return _passes(searching, teachers, batch_tokens), _passes(reporting, teachers, batch_tokens)


def with_held_out_tasks(config: SearchConfig) -> tuple[ObjectiveConfig, ...]:
    """The held-out section, and for tasks that are searched on and not named there the rest of their split.

    They are reported by the metric that is searched on and by the tasks' own first.
    """
    named = {task for c in config.held_out if isinstance(c, TaskConfig) for task in c.tasks}
    added: list[ObjectiveConfig] = []
    for objective in config.objectives:
        if isinstance(objective, TaskConfig) and not named & set(objective.tasks):
            added.append(objective)
            if objective.metric == MARGIN:
                added.append(objective.model_copy(update={"metric": None}))
    return (*config.held_out, *added)


def _where(config: TaskConfig) -> list[tuple[str, str | None]]:
    return [(task, config.split) for task in config.tasks]


class _Reader:
    """Reads what objectives are measured on; what two of them share is read once."""

    def __init__(self, config: SearchConfig, tokenizer: PreTrainedTokenizerBase, teachers: Teachers) -> None:
        self._config, self._tokenizer, self._teachers = config, tokenizer, teachers
        self._known: dict[TaskSettings, tuple[list[TaskItems], bool]] = {}

    @cached_property
    def _encoder(self) -> object:
        return encoder(self._teachers.family.base.directory, self._tokenizer)

    def section(
        self,
        configs: Sequence[ObjectiveConfig],
        section: str,
        part: Part,
        divided: set[tuple[str, str | None]],
    ) -> list[_Measure]:
        """Everything that one section of the config measures.

        Args:
            part: what this section gets of
            divided: the tasks and splits that are in both sections.
        """
        made = []
        for index, config in enumerate(configs):
            try:
                if isinstance(config, TaskConfig):
                    takes = part if divided & set(_where(config)) else None
                    made.append(self._task(config, takes))
                else:
                    sets = token_sets(config.data, self._tokenizer, config.tokens, config.sequence_length)
                    made.append(_Measure(config, sets))
            except InputError as error:
                key = "tasks" if isinstance(config, TaskConfig) else "data"
                raise ConfigError(Problem((section, index, key), str(error))) from None
        return made

    def _task(self, config: TaskConfig, part: Part) -> _Measure:
        settings = TaskSettings(
            config.tasks,
            Path(config.include_path) if config.include_path else None,
            config.split,
            config.few_shot,
            config.chat_template,
            config.limit,
            part,
            self._config.seed,
        )
        if settings not in self._known:
            items = load_items(settings, self._encoder)
            _, forward = self._teachers.get("base")
            self._known[settings] = items, takes_trees(items, forward, self._teachers.device)
        items, trees = self._known[settings]
        made = likelihood(items, config.metric, trees=trees)
        return _Measure(config, made.sets, tuple(items), made)


def _names(measures: Sequence[_Measure]) -> list[str]:
    """What the objectives are called: their metric or kind, numbered where that is not enough."""
    names = [m.config.kind if m.made is None else m.made.metric.name for m in measures]
    return [n if names.count(n) == 1 else f"{n}-{index + 1}" for index, n in enumerate(names)]


def _refuse_test_splits(searching: Sequence[_Measure]) -> None:
    problems = [
        Problem(
            ("objectives", index, "split"),
            f"{items.name}: {items.split!r} is its test split; what is searched on tells nothing about other "
            "models. Choose another split, or search on it all the same with --allow-test-split",
        )
        for index, measure in enumerate(searching)
        for items in measure.items
        if items.is_test
    ]
    if problems:
        raise ConfigError(problems)


def _passes(prepared: Sequence[_Measure], teachers: Teachers, batch_tokens: int) -> Passes:
    rungs = layout([one for m in prepared for one in m.sets], batch_tokens, device=teachers.device)
    batches = [batch for rung in rungs for batch in rung]
    names = _names(prepared)
    objectives: list[Objective] = []
    for name, measure in zip(names, prepared, strict=True):
        if measure.made is not None:
            objectives.append(replace(measure.made, name=name))
        else:
            assert isinstance(measure.config, TextConfig)
            objectives.append(build(name, measure.config, measure.sets, teachers.get, batches))
    return Passes(objectives, rungs)


def _refuse_leaks(searched: Sequence[Sequence[TokenSet]], reported: Sequence[Sequence[TokenSet]]) -> None:
    """The held-out set holds nothing that is searched on, whatever it is called there.

    Raises:
        ConfigError: names the data, how many documents, and how the first of them begins.
    """
    named = {text: s.name for sets in searched for s in sets for text in s.documents}
    problems = []
    for index, sets in enumerate(reported):
        for token_set in sets:
            leaked = sorted(token_set.documents & named.keys())
            if leaked:
                message = (
                    f"{len(leaked)} of {len(token_set.documents)} documents are also searched on "
                    f"(as {named[leaked[0]]}), found {leaked[0][:60]!r}; expected other documents"
                )
                problems.append(Problem(("held_out", index, "data", token_set.name), message))
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


def load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model as transformers loads it; safetensors only, no remote code.

    Raises:
        FamilyError: the directory holds no such model.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise FamilyError(f"{directory}: cannot be loaded: {first_line}") from None
    return model.to(device).eval().requires_grad_(False)


def member_digest(directory: Path) -> str:
    """Which weights a directory holds: names, sizes and content of its safetensors headers."""
    parts = []
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = hashlib.sha256(stream.read(length)).hexdigest()
        parts.append([file.name, file.stat().st_size, header])
    return digest(parts)


class Teachers:
    """Dense members, loaded when first asked; one at a time is in memory."""

    def __init__(self, family: Family, device: torch.device, dtype: torch.dtype) -> None:
        self.family, self.device, self._dtype = family, device, dtype
        self._loaded: tuple[str, PreTrainedModel] | None = None

    def get(self, name: str) -> tuple[str, Forward]:
        """(digest of the weights, forward pass); logits have the base's vocabulary."""
        member = self.family.by_name(name)
        assert member is not None
        vocabulary = int(self.family.base.config["vocab_size"])

        def run(batch: Batch) -> Iterator[Prediction]:
            if self._loaded is None or self._loaded[0] != name:
                self.release()
                self._loaded = (name, load_model(member.directory, self._dtype, self.device))
            yield from predictions_alone(self._loaded[1], batch, vocabulary=vocabulary)

        return f"{member.model} {member_digest(member.directory)}", run

    def release(self) -> None:
        """Free the memory."""
        self._loaded = None
        gc.collect()
