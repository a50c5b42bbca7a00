"""Turns a config's objectives, gates and held-out set into passes over data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TokenSet, check_ids
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, KeyPath, Problem, errors_at
from gptailor_merge.objectives.kinds import Context, ObjectiveConfig, PreparedObjective, Purpose
from gptailor_merge.objectives.protocols import UnitSet
from gptailor_merge.scoring import fitted_texts
from gptailor_merge.scoring.batch_size import DEFAULT_BATCH_TOKENS
from gptailor_merge.scoring.gap import Pair
from gptailor_merge.scoring.gates import PREFIX
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.scoring.teachers import Teachers


@dataclass(frozen=True)
class Items:
    """The items of a task that an objective is measured on.

    Attributes:
        section: of the config: objectives, gates or held_out.
        objective: its name.
        task: name of the benchmark.
        split: the one that the items come from.
        ids: positions in the split, in the order in which rungs take them.
    """

    section: str
    objective: str
    task: str
    split: str
    ids: tuple[int, ...]


SECTIONS = ("objectives", "gates", "held_out")
"""Keys of the config under which objectives stand."""


@dataclass(frozen=True)
class Measures:
    """Everything that a run measures.

    Attributes:
        searched: the objectives, in the order of the config.
        gates: the gates' measures, in the order of the config.
        held_out: the reported ones, in the order of the config; those reported besides come last.
        pairs: which objectives have a counterpart that is held out.
        items: which items of tasks are scored.
        texts: token sequences that maps are fitted to.
        tuned_on: position of an objective in the config -> token sequences that recipes are tuned on.
        context: what the kinds of objectives were built with; its teachers run when they are asked.
        warnings: sentences that belong beside every number that is reported.
    """

    searched: Passes
    gates: Passes
    held_out: Passes
    pairs: tuple[Pair, ...]
    items: tuple[Items, ...]
    texts: tuple[TokenSet, ...]
    tuned_on: Mapping[int, tuple[TokenSet, ...]]
    context: Context
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Measure:
    """An objective whose data are read.

    Attributes:
        path: its key in the config.
    """

    path: KeyPath
    config: ObjectiveConfig
    prepared: PreparedObjective


def measures(
    config: SearchConfig,
    tokenizer: PreTrainedTokenizerBase,
    teachers: Teachers,
    out_dtype: torch.dtype,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> Measures:
    """Reads the data and builds all objectives.

    Args:
        tokenizer: the base model's.
        teachers: the dense members.
        out_dtype: dtype of the written model.
        batch_tokens: see batches.layout.

    Raises:
        ConfigError: data or tasks that are wrong, a test split that is searched on without leave, or
            something that is both searched on and held out.
    """
    context = Context(
        tokenizer=tokenizer,
        directory=teachers.family.base.directory,
        teacher=teachers.get,
        device=teachers.device,
        out_dtype=out_dtype,
        seed=config.seed,
    )
    sections: dict[str, Sequence[ObjectiveConfig]] = {
        "objectives": config.objectives,
        "gates": config.gates,
        "held_out": reported(config),
    }
    context = replace(context, divided=_divided(sections, context))
    searching = {name: _prepared(name, sections[name], context) for name in ("objectives", "gates")}
    searched = [measure for section in searching.values() for measure in section]
    given_texts = fitted_texts.given(config, tokenizer)
    of_search = context
    tested = _on_test_splits(searched)
    if tested and not config.allow_test_split:
        hint = "scores on it would tell nothing about other models; expected another, or --allow-test-split"
        raise ConfigError([Problem(p.path, f"{p.message}, {hint}") for p in tested])
    seen = [*(source for measure in searched for source in measure.prepared.sets), *given_texts]
    if config.drop_leaks:
        context = replace(context, without=frozenset(text for source in seen for text in source.documents))
    reporting = _without_repetitions(_prepared("held_out", sections["held_out"], context))
    _refuse_leaks(seen, reporting)
    reported_on = [source for measure in reporting for source in measure.prepared.sets]
    held_out = {text for source in reported_on for text in source.documents}
    scored = [(measure.config, measure.prepared) for measure in searching["objectives"]]
    draws = fitted_texts.OwnDraws(scored, tokenizer, held_out)
    texts = [*given_texts, *fitted_texts.shared(config, scored, draws)]
    tuned_on = fitted_texts.tuned_on(config, draws)
    base = teachers.family.base
    sources = [*seen, *texts, *(source for sets in tuned_on.values() for source in sets), *reported_on]
    check_ids([s for s in sources if isinstance(s, TokenSet)], base.vocabulary_size, base.model)
    prepared = {**searching, "held_out": reporting}
    passes = {
        name: _passes(name, section, context.device, batch_tokens) for name, section in prepared.items()
    }
    return Measures(
        searched=passes["objectives"],
        gates=passes["gates"],
        held_out=passes["held_out"],
        pairs=tuple(_pairs(prepared, passes)),
        items=tuple(items for name in SECTIONS for items in _items(name, prepared[name], passes[name])),
        texts=tuple({source.digest: source for source in texts}.values()),
        tuned_on=tuned_on,
        context=of_search,
        warnings=tuple(
            dict.fromkeys(
                f"{p.message}, and was searched on: scores on it flatter this model and no other"
                for p in tested
            )
        ),
    )


def reported(config: SearchConfig) -> tuple[ObjectiveConfig, ...]:
    """Returns the held-out section, and what the kinds that are searched on report besides."""
    besides: list[ObjectiveConfig] = []
    for kind in dict.fromkeys(type(objective) for objective in config.objectives):
        searched, held_out = (
            [objective for objective in section if type(objective) is kind]
            for section in (config.objectives, config.held_out)
        )
        besides += kind.reported_besides(searched, held_out)
    return (*config.held_out, *besides)


def _purpose(section: str) -> Purpose:
    return "held_out" if section == "held_out" else "searched"


def _divided(sections: Mapping[str, Sequence[ObjectiveConfig]], context: Context) -> frozenset[str]:
    """Returns the sources of which one split is both searched on and held out; each side gets a part."""
    splits: dict[Purpose, set[tuple[str, str]]] = {"searched": set(), "held_out": set()}
    for section, configs in sections.items():
        purpose = _purpose(section)
        for index, config in enumerate(configs):
            with errors_at(_source_path((section, index), config)):
                splits[purpose] |= set(config.splits(context.for_purpose(purpose)).items())
    return frozenset(name for name, _ in splits["searched"] & splits["held_out"])


def _prepared(section: str, configs: Sequence[ObjectiveConfig], context: Context) -> list[_Measure]:
    """Reads the data of everything that one section of the config measures."""
    measured = []
    for index, config in enumerate(configs):
        path: KeyPath = (section, index)
        with errors_at(_source_path(path, config)):
            measured.append(_Measure(path, config, config.prepare(context.for_purpose(_purpose(section)))))
    return measured


def _source_path(path: KeyPath, config: ObjectiveConfig) -> KeyPath:
    return path if config.source_key is None else (*path, config.source_key)


def _without_repetitions(measured: Sequence[_Measure]) -> list[_Measure]:
    """Keeps the first of those that are one metric on the same items."""
    kept: list[_Measure] = []
    for measure in measured:
        if not (measure.prepared.items and any(_identity(measure) == _identity(known) for known in kept)):
            kept.append(measure)
    return kept


def _identity(measure: _Measure) -> tuple[str, list[str]]:
    return measure.prepared.metric, [source.digest for source in measure.prepared.sets]


def _on_test_splits(searched: Sequence[_Measure]) -> list[Problem]:
    return [
        Problem((*measure.path, "split"), f"{items.name}: {items.split!r} is its test split")
        for measure in searched
        for items in measure.prepared.items
        if items.is_test
    ]


def _names(section: str, measured: Sequence[_Measure]) -> list[str]:
    """Returns the objectives' names: their metrics, numbered where several have one name."""
    metrics = [measure.prepared.metric for measure in measured]
    prefix = PREFIX if section == "gates" else ""
    return [
        prefix + (metric if metrics.count(metric) == 1 else f"{metric}-{metrics[: index + 1].count(metric)}")
        for index, metric in enumerate(metrics)
    ]


def _passes(section: str, measured: Sequence[_Measure], device: torch.device, batch_tokens: int) -> Passes:
    """Lays out the batches of a section and builds its objectives."""
    token_sources = [s for measure in measured for s in measure.prepared.sets if isinstance(s, TokenSet)]
    rungs = layout(token_sources, batch_tokens, device=device)
    batches = [batch for rung in rungs for batch in rung]
    names = _names(section, measured)
    return Passes(
        [measure.prepared.build(name, batches) for name, measure in zip(names, measured, strict=True)], rungs
    )


def _items(section: str, measured: Sequence[_Measure], passes: Passes) -> Iterator[Items]:
    for measure, objective in zip(measured, passes.objectives, strict=True):
        for items in measure.prepared.items:
            yield Items(section, objective.name, items.name, items.split, items.ids)


def _pairs(prepared: Mapping[str, Sequence[_Measure]], passes: Mapping[str, Passes]) -> Iterator[Pair]:
    """Yields each objective with the first held-out one that measures the same."""
    reporting = list(zip(prepared["held_out"], passes["held_out"].objectives, strict=True))
    for measure, searched in zip(prepared["objectives"], passes["objectives"].objectives, strict=True):
        for counterpart, held_out in reporting:
            sets = _common_sets(measure, counterpart)
            if sets and measure.prepared.metric == counterpart.prepared.metric:
                yield Pair(searched.name, held_out.name, sets)
                break


def _common_sets(measure: _Measure, counterpart: _Measure) -> tuple[str, ...]:
    """Returns the names of the sets on which two measures are comparable."""
    names = {source.name for source in counterpart.prepared.sets}
    return tuple(
        source.name
        for source in measure.prepared.sets
        if source.name in names
        and measure.config.comparable_on(source.name) == counterpart.config.comparable_on(source.name)
    )


def _refuse_leaks(seen: Sequence[TokenSet | UnitSet], reporting: Sequence[_Measure]) -> None:
    """Refuses a held-out set with anything in it that is searched on, whatever it is called there.

    Args:
        seen: all that a search looks at.

    Raises:
        ConfigError: names the data or task, how many documents or items, and how the first begins.
    """
    names = {text: source.name for source in seen for text in source.documents}
    problems = []
    for measure in reporting:
        path = _source_path(measure.path, measure.config)
        for source in measure.prepared.sets:
            leaked = sorted(source.documents & names.keys())
            if not leaked:
                continue
            if measure.prepared.items:
                key, what = path, f"items of {source.name}"
                hint = "expected other items; drop_leaks: true leaves them out"
            else:
                key, what, hint = (*path, source.name), "documents", "expected other documents"
            message = (
                f"{len(leaked)} of {len(source.documents)} {what} are also searched on "
                f"(as {names[leaked[0]]}), found {leaked[0][:60]!r}; {hint}"
            )
            problems.append(Problem(key, message))
    if problems:
        raise ConfigError(problems)
