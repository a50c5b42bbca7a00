"""A run as its page and its pictures show it: they are drawn from a RunView and read no file of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptailor_merge.config import SearchConfig
from gptailor_merge.documents import write_yaml
from gptailor_merge.errors import ConfigError
from gptailor_merge.models.contents import MEMBER
from gptailor_merge.objectives.scores import COSTS, TOTAL, UNITS, Score
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.recipe_map import Agreement, Place, agreement, healed, outer, places
from gptailor_merge.report.search_history import Box, Trial, trials
from gptailor_merge.runs.continuations import Continuations
from gptailor_merge.runs.metadata import Dimensions
from gptailor_merge.runs.provenance import changed
from gptailor_merge.runs.record import FOUND, Record
from gptailor_merge.runs.redaction import public, public_name
from gptailor_merge.runs.stages import StageTable
from gptailor_merge.runs.summary import FrontRow, front_rows, totals
from gptailor_merge.scoring.gap import Gap
from gptailor_merge.search.candidates import Candidate, Counts
from gptailor_merge.search.front import losses

BASE = "base"


GOOD_SHARE, MOST_GOOD = 0.1, 100
"""The good recipes are this share of those that were scored on everything, but no more than this number."""


CONFIDENCE = 1.96
"""The mean lies within this number of standard errors in 95 of 100 cases."""


NATS = ("nats", "perplexity", "bits")
"""Units of scores whose mean, which is minimised, is in nats."""


@dataclass(frozen=True)
class ShownMember:
    """A model of the family.

    Attributes:
        model: its Hub id with the revision, or the name of its local directory.
        local: whether it is a local directory.
    """

    name: str
    model: str
    local: bool


@dataclass(frozen=True)
class HeldOut:
    """Held-out scores of all models on one set, or (TOTAL) on all sets of an objective.

    Attributes:
        scores: model -> score; the members in the order of the family, FOUND, then other runs.
    """

    objective: str
    name: str
    scores: Mapping[str, Score]

    @property
    def higher_is_better(self) -> bool:
        """Tells whether higher values, as users see them, are better."""
        return next(iter(self.scores.values())).unit == "negated"

    def interval(self, model: str) -> tuple[float, float] | None:
        """Returns the 95 % interval of a score, as users see it; None without a standard error."""
        score = self.scores[model]
        if score.error is None:
            return None
        ends = [UNITS[score.unit](score.mean + side * CONFIDENCE * score.error) for side in (-1, 1)]
        return min(ends), max(ends)


@dataclass(frozen=True)
class Spent:
    """The cost of all candidates with one outcome."""

    candidates: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Other:
    """Another run to compare with.

    Attributes:
        value: its lowest loss, or the volume that its front dominates, on the scale of the trials.
        front: its front, where fronts are compared.
    """

    name: str
    value: float
    front: tuple[FrontRow, ...]


@dataclass(frozen=True)
class RunView:
    """A run as readers see it. A value that the run does not have, or not yet, is None or empty.

    No path of this machine is in it: files and local models are shown by their names.

    Attributes:
        baseline: the baseline that was run instead of a search.
        done: whether the search has ended.
        budget: the number of candidates that the search may propose.
        digest, recipe, places, loss: the best recipe: its digest, its YAML, its map and its loss.
        repaired, fitted_norms: the slots of the best recipe that are repaired, or whose norms are fitted.
        healed: how the best recipe was healed; empty where it was not.
        outer: embeddings, head and tokenizer -> where the best recipe takes them from.
        depth: the number of layers of the family.
        axes: the objectives of the front, the costs first; empty where one recipe is sought.
        lower_is_better: objective -> whether lower values, as users see them, are better.
        sets: objective -> the sets that it is searched on.
        summed: the objectives that the loss adds up.
        nats: whether the loss is in nats.
        spent: outcome -> what its candidates cost.
        front: the recipes that no other beats in every objective.
        beaten: objective -> score, for each recipe that was scored on everything and is not on the front.
        picked: the name of the front's recipe that the run chose.
        sizes: BASE and FOUND -> their dimensions.
        gaps: how far search scores of the best recipe are from its held-out scores.
        stages: the held-out scores at the end of each stage.
        others: other runs to compare with.
        writes: what base and best recipe write after the same prompts.
        config: the search config, as YAML.
    """

    members: tuple[ShownMember, ...]
    baseline: str | None
    done: bool
    budget: int
    digest: str | None
    recipe: str
    places: tuple[Place, ...]
    repaired: tuple[int, ...]
    fitted_norms: tuple[int, ...]
    healed: str
    outer: Mapping[str, str]
    depth: int
    loss: float | None
    axes: tuple[str, ...]
    lower_is_better: Mapping[str, bool]
    sets: Mapping[str, tuple[str, ...]]
    summed: tuple[str, ...]
    nats: bool
    trials: tuple[Trial, ...]
    counts: Counts
    spent: Mapping[str, Spent]
    front: tuple[FrontRow, ...]
    beaten: tuple[Mapping[str, float], ...]
    picked: str | None
    agreement: Agreement | None
    sizes: Mapping[str, Dimensions]
    held_out: tuple[HeldOut, ...]
    gaps: tuple[Gap, ...]
    stages: tuple[StageTable, ...]
    others: tuple[Other, ...]
    writes: Continuations | None
    warnings: tuple[str, ...]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    config: str

    @property
    def kept(self) -> int:
        """The number of layers of the best recipe."""
        return sum(place.slot is not None for place in self.places)

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers of the family that the best recipe does without."""
        return tuple(place.layer for place in self.places if place.slot is None)


def view(record: Record, others: Sequence[Record] = ()) -> RunView:
    """Turns a run into what is shown of it.

    Args:
        others: runs of the same search config by other methods.

    Raises:
        ConfigError: another run was scored on something else.
    """
    for other in others:
        _check_comparable(record, other)
    box = None
    if record.axes and record.finished:
        runs = (record, *others)
        box = Box.around(losses(c.scores, record.axes) for run in runs for c in run.finished)
    best = record.best
    recipe = None if best is None else best.parsed
    names = {model: name for name, model in record.models.items()}
    columns = () if recipe is None else places(recipe, names)
    depth = 1 + max((layer for place in columns for layer in place.layers), default=-1)
    scores = {} if best is None else best.scores
    summed = _summed(record)
    good = _good(record)
    on_front = {point.candidate.digest for point in record.front}
    shown_names = {model: public_name(model) for model in record.models.values()}
    return RunView(
        members=tuple(
            ShownMember(name, shown_names[model], shown_names[model] != model)
            for name, model in record.models.items()
        ),
        baseline=record.baseline,
        done=record.done,
        budget=record.settings.search.budget,
        digest=None if best is None else best.digest,
        recipe="" if recipe is None else write_yaml(public(recipe.to_mapping(), shown_names)),
        places=columns,
        repaired=() if recipe is None else plan(recipe).repaired,
        fitted_norms=() if recipe is None else plan(recipe).fitted_norms,
        healed="" if recipe is None else healed(recipe, record.directory.path),
        outer={} if recipe is None else outer(recipe, names),
        depth=depth,
        loss=None if best is None else best.loss,
        axes=_costs_first(record),
        lower_is_better={name: not _is_negated(by_set) for name, by_set in scores.items()},
        sets={name: tuple(by_set) for name, by_set in scores.items()},
        summed=summed,
        nats=bool(summed) and all(_unit(scores[name]) in NATS for name in summed),
        trials=trials(record.candidates, record.finished, record.axes, box),
        counts=record.counts,
        spent=_spent((*record.candidates, *record.repairs, *record.tunings, *record.healings)),
        front=_front(record),
        beaten=tuple(
            totals(c.scores, record.axes) for c in record.finished if record.axes and c.digest not in on_front
        ),
        picked=next((point.name for point in record.front if point.candidate is best), None),
        agreement=agreement(_known(record, good, names), names, depth) if good else None,
        sizes={name: size for name, size in record.sizes.items() if name in (BASE, FOUND)},
        held_out=tuple(_held_out(record, others)),
        gaps=() if best is None else record.gaps.get(best.digest, ()),
        stages=record.stages,
        others=tuple(_other(other, box) for other in others if other.best is not None),
        writes=record.writes,
        warnings=record.warnings,
        settings=_settings(record.settings),
        versions={str(name): str(number) for name, number in record.versions.items()},
        config=write_yaml(public(record.document, shown_names)),
    )


def _check_comparable(record: Record, other: Record) -> None:
    where = f"--baseline: {other.directory.path}"
    if other.best is None:
        raise ConfigError(f"{where}: no candidate has been scored yet")
    if (record.fingerprint, record.axes) != (other.fingerprint, other.axes):
        raise ConfigError(f"{where} was scored on something else; expected a run of the same search config")
    if names := _differing_inputs(record, other, MEMBER):
        raise ConfigError(f"{where} was made of other models: {', '.join(names)} differ between the runs")


def _differing_inputs(record: Record, other: Record, kind: str) -> list[str]:
    """Returns what the scores of two runs depend on and differs, as far as both have recorded it.

    Args:
        kind: the beginning of the names that count.
    """
    shared = sorted(name for name in {*record.inputs} & {*other.inputs} if name.startswith(kind))
    return changed(*({name: run.inputs[name] for name in shared} for run in (record, other)))


def _name(other: Record) -> str:
    return other.baseline or other.directory.path.resolve().name


def _other(other: Record, box: Box | None) -> Other:
    assert other.best is not None
    if box is not None:
        return Other(_name(other), box.volume([point.losses for point in other.front]), _front(other))
    assert other.best.loss is not None
    return Other(_name(other), other.best.loss, ())


def _unit(by_set: Mapping[str, Score]) -> str:
    return next(iter(by_set.values())).unit


def _is_negated(by_set: Mapping[str, Score]) -> bool:
    return _unit(by_set) == "negated"


def _summed(record: Record) -> tuple[str, ...]:
    """Returns the objectives with a weight; the config has them in the order of the scores."""
    configs = record.settings.objectives
    return tuple(name for name, config in zip(record.objectives, configs, strict=False) if config.weight)


def _costs_first(record: Record) -> tuple[str, ...]:
    scores = {} if record.best is None else record.best.scores
    return tuple(sorted(record.axes, key=lambda name: name in scores and _unit(scores[name]) not in COSTS))


def _front(record: Record) -> tuple[FrontRow, ...]:
    """Returns the front with the names of its files, not where they are."""
    return tuple(replace(row, recipe=Path(row.recipe.name)) for row in front_rows(record))


def _good(record: Record) -> list[Candidate]:
    """Returns the front, or the best tenth of the recipes that were scored on everything."""
    if record.front:
        return [point.candidate for point in record.front][:MOST_GOOD]
    distinct = {candidate.digest: candidate for candidate in reversed(record.finished)}
    ranked = sorted((c for c in distinct.values() if c.loss is not None), key=lambda c: (c.loss, c.number))
    return ranked[: min(MOST_GOOD, max(1, round(GOOD_SHARE * len(ranked))))]


def _spent(candidates: Sequence[Candidate]) -> dict[str, Spent]:
    """Adds up what candidates cost by outcome, in the order in which outcomes first occur."""
    by_status: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_status[candidate.status].append(candidate)
    return {
        # A finalist may be repaired twice, at its cuts and everywhere.
        status: Spent(
            len({c.number for c in alike}), sum(c.tokens for c in alike), sum(c.seconds for c in alike)
        )
        for status, alike in by_status.items()
    }


def _held_out(record: Record, others: Sequence[Record]) -> Iterator[HeldOut]:
    models = {name: record.held_out[name] for name in (*record.models, FOUND) if name in record.held_out}
    if FOUND not in models:
        return
    for other in others:
        has_same_settings = FOUND in other.held_out and _reported_on(other) == _reported_on(record)
        if has_same_settings and not _differing_inputs(record, other, "held_out"):
            models[_name(other)] = other.held_out[FOUND]
    for objective, by_set in models[FOUND].items():
        for name in by_set:
            yield HeldOut(
                objective, name, {model: scores[objective][name] for model, scores in models.items()}
            )
        if len(by_set) > 1:
            sums = {m: Score.total(list(scores[objective].values())) for m, scores in models.items()}
            yield HeldOut(objective, TOTAL, sums)


def _reported_on(record: Record) -> Any:
    """Returns a value that is equal for runs whose held-out scores may stand side by side."""
    shape = {
        objective: {name: score.count for name, score in by_set.items()}
        for objective, by_set in record.held_out[FOUND].items()
    }
    settings = record.settings
    return [settings.family, settings.held_out, settings.seed, shape]


def _settings(config: SearchConfig) -> dict[str, str]:
    """Returns the settings that a reader asks for first; the whole config stands beside them."""
    search, target = config.search, config.target.model_dump(exclude_none=True)
    return {
        "target": ", ".join(f"{name} {_written(value)}" for name, value in target.items()),
        "merge methods": ", ".join(config.operations.merge) or "none",
        "optimiser": search.optimizer,
        "budget": f"{search.budget:,} candidates in generations of {search.population}",
        "seed": str(config.seed),
        "merge arithmetic": config.dtype,
    }


def _written(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _known(record: Record, candidates: Sequence[Candidate], names: Mapping[str, str]) -> list[Recipe]:
    """Returns the recipes of candidates.

    Raises:
        ConfigError: one takes layers of a model that is no member.
    """
    recipes = [candidate.parsed for candidate in candidates]
    strange = next((model for recipe in recipes for model in recipe.models if model not in names), None)
    if strange is not None:
        raise ConfigError(
            f"the recipes of the journal take layers of {strange}, which is no member; expected the config "
            "that the run was begun with",
            file=record.directory.config,
        )
    return recipes
