"""What the numbers of a run were measured on, in words: data, splits, numbers of items, settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import PurePath

from gptailor_merge.objectives.configs import (
    Bound,
    CostConfig,
    DatasetConfig,
    ObjectiveConfig,
    RepetitionConfig,
    TaskConfig,
    TextConfig,
)
from gptailor_merge.scoring.measures import Items


def described(
    section: str, configs: Sequence[ObjectiveConfig], items: Sequence[Items], harness: str | None
) -> list[str]:
    """A sentence for each objective of a section of the config; those of tasks together.

    Args:
        section: objectives, gates or held_out.
        items: of the run.
        harness: version of lm-eval.
    """
    sentences = [f"{_of(one)}{_bound(one)}" for one in configs if not isinstance(one, TaskConfig)]
    own = [one for one in items if one.section == section]
    tasks = [one for one in configs if isinstance(one, TaskConfig)]
    for objective, some in groupby(own, key=lambda one: one.objective):
        named = ", ".join(f"{one.task} ({one.split} split, {len(one.ids):,} items)" for one in some)
        sentences.append(f"{objective} on {named}")
    if own:
        sentences[-1] += "".join(f"; {text}" for text in _settings(tasks, harness))
    return sentences


def source_of(configs: Sequence[ObjectiveConfig], name: str) -> str | DatasetConfig | None:
    """The data of that name among texts: the name of a file, or a data set."""
    for one in configs:
        if isinstance(one, (TextConfig, RepetitionConfig)) and name in one.data:
            source = one.data[name]
            return PurePath(source).name if isinstance(source, str) else source
    return None


def _of(config: ObjectiveConfig) -> str:
    if isinstance(config, CostConfig):
        return config.kind
    if isinstance(config, RepetitionConfig):
        return (
            f"repetition on {_data(config)}; {config.prompts} prompts each of {config.prompt_tokens} tokens, "
            f"{config.new_tokens} tokens written"
        )
    assert isinstance(config, TextConfig)
    size = f"{config.tokens:,} tokens in all, in sequences of {config.sequence_length}"
    if config.kind == "perplexity":
        return f"perplexity on {_data(config)}; {size}"
    return f"KL(teacher ‖ model) on {_data(config)}; {size}; the teacher's {config.top_k} likeliest tokens"


def _data(config: TextConfig | RepetitionConfig) -> str:
    named = []
    for name, source in config.data.items():
        where = PurePath(source).name if isinstance(source, str) else _dataset(source)
        of_teacher = isinstance(config, TextConfig) and config.kind == "kl"
        teacher = f", teacher {config.teacher_of(name)}" if of_teacher else ""  # type: ignore[union-attr]
        named.append(f"{name} ({where}{teacher})")
    return ", ".join(named)


def _dataset(source: DatasetConfig) -> str:
    config = f" {source.config}" if source.config else ""
    return f"{source.dataset}{config}, {source.split} split"


def _bound(config: ObjectiveConfig) -> str:
    if not isinstance(config, Bound):
        return ""
    limit = f"at most {config.at_most}" if config.at_least is None else f"at least {config.at_least}"
    return f"; {limit}"


def _settings(tasks: Sequence[TaskConfig], harness: str | None) -> Iterator[str]:
    """What is the same for all tasks of a section."""
    if harness:
        yield f"templates and metrics of lm-eval {harness}"
    for attribute, text in (("few_shot", "{}-shot"), ("limit", "at most {} items of each")):
        values = {getattr(one, attribute) for one in tasks}
        if len(values) == 1 and None not in values:
            yield text.format(values.pop())
    if tasks and all(one.chat_template for one in tasks):
        yield "with the chat template"
