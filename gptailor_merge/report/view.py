"""A run as its figures and its page need it; no figure reads the journal by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor_merge.documents import write_yaml
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.scores import COSTS, TOTAL, UNITS, Score, Scores, natural
from gptailor_merge.planning.resolve import plan
from gptailor_merge.report.recipe_map import Agreement, Place, agreement, outer, places
from gptailor_merge.report.search_history import Box, Trial, trials
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.public import public, public_name
from gptailor_merge.runs.record import Record, record
from gptailor_merge.runs.summary import FOUND
from gptailor_merge.scoring.gap import Gap
from gptailor_merge.search.candidates import Candidate, Counts
from gptailor_merge.search.front import losses

BASE = "base"


GOOD_SHARE, MOST_GOOD = 0.1, 100
"""What counts as good: this share of the recipes that were scored on everything, and no more than so many."""


CONFIDENCE = 1.96
"""So many standard errors on both sides of a mean hold it in 95 of 100 cases."""


NATS = ("nats", "perplexity", "bits")
"""Units of which the mean that is minimised is in nats."""


@dataclass(frozen=True)
class Member:
    """A model of the family: a Hub id with its revision, or the name of a local directory."""

    name: str
    model: str
    local: bool


@dataclass(frozen=True)
class Size:
    """Of a model."""

    layers: int
    parameters: int


@dataclass(frozen=True)
class HeldOut:
    """Held-out scores of all models on one set, or (TOTAL) on all sets of an objective.

    Attributes:
        scores: model -> score; members in the order of the family, then what was found, then other runs'.
    """

    objective: str
    name: str
    scores: Mapping[str, Score]

    @property
    def higher_is_better(self) -> bool:
        """Of the values that users see."""
        return next(iter(self.scores.values())).unit == "negated"

    def interval(self, model: str) -> tuple[float, float] | None:
        """The 95 % interval of a score, as users see it; None where there is no standard error."""
        score = self.scores[model]
        if score.error is None:
            return None
        ends = [UNITS[score.unit](score.mean + side * CONFIDENCE * score.error) for side in (-1, 1)]
        return min(ends), max(ends)


@dataclass(frozen=True)
class FrontPoint:
    """A recipe in the space of the objectives; scores are as users see them.

    Attributes:
        name: of its file, without the ending.
    """

    name: str
    layers: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Spent:
    """What the candidates of one outcome took."""

    candidates: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Other:
    """A run to compare with: its lowest loss, or what its front dominates, as the trials have it."""

    name: str
    value: float
    front: tuple[FrontPoint, ...]


@dataclass(frozen=True)
class RunView:
    """What is shown of a run. What the run does not have (yet) is None or empty.

    Attributes:
        places, recipe, digest: of the best recipe.
        repaired: slots of it that are repaired.
        outer: embeddings, head and tokenizer -> where they come from.
        depth: layers of the family.
        axes: the objectives of a front, the costs first; empty where one recipe is sought.
        lower_is_better: objective -> whether, of the values that users see.
        sets: objective -> what it is searched on.
        summed: the objectives that the loss adds up.
        nats: whether the loss is in nats.
        beaten: what was scored on everything and is not on the front.
        picked: the name of the front's recipe that the run took.
        spent: outcome -> what its candidates took.
        sizes: "base" and "found".
        seconds: of scoring.
    """

    members: tuple[Member, ...]
    baseline: str | None
    done: bool
    budget: int
    digest: str | None
    recipe: str
    places: tuple[Place, ...]
    repaired: tuple[int, ...]
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
    front: tuple[FrontPoint, ...]
    beaten: tuple[Mapping[str, float], ...]
    picked: str | None
    agreement: Agreement | None
    sizes: Mapping[str, Size]
    held_out: tuple[HeldOut, ...]
    gaps: tuple[Gap, ...]
    others: tuple[Other, ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    config: str

    @property
    def kept(self) -> int:
        """Layers of the best recipe."""
        return sum(place.slot is not None for place in self.places)

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers of the family that the best recipe is without."""
        return tuple(place.layer for place in self.places if place.slot is None)


def view(run: RunDirectory, others: Sequence[RunDirectory] = ()) -> RunView:
    """Read a run.

    Args:
        others: runs of the same search config by other methods.

    Raises:
        InputError: one of the directories holds no run.
        ConfigError: another run was scored on something else.
    """
    own = record(run)
    read = [record(other) for other in others]
    for other in read:
        _check_comparable(own, other)
    box = None
    if own.axes and own.finished:
        box = Box.around(losses(c.scores, own.axes) for one in (own, *read) for c in one.finished)
    best = own.best
    recipe = None if best is None else best.parsed
    names = {model: name for name, model in own.models.items()}
    columns = () if recipe is None else places(recipe, names)
    depth = 1 + max((layer for place in columns for layer in place.layers), default=-1)
    scores = {} if best is None else best.scores
    summed = _summed(own)
    good = _good(own)
    on_front = {point.candidate.digest for point in own.points}
    return RunView(
        members=tuple(
            Member(name, public_name(model), public_name(model) != model)
            for name, model in own.models.items()
        ),
        baseline=own.baseline,
        done=own.done,
        budget=own.document["search"]["budget"],
        digest=None if best is None else best.digest,
        recipe="" if recipe is None else write_yaml(public(recipe.to_mapping())),
        places=columns,
        repaired=() if recipe is None else plan(recipe).repaired,
        outer={} if recipe is None else outer(recipe, names),
        depth=depth,
        loss=None if best is None else best.loss,
        axes=_costs_first(own),
        lower_is_better={name: not _is_negated(by_set) for name, by_set in scores.items()},
        sets={name: tuple(by_set) for name, by_set in scores.items()},
        summed=summed,
        nats=bool(summed) and all(_unit(scores[name]) in NATS for name in summed),
        trials=trials(own.candidates, own.finished, own.axes, box),
        counts=own.counts,
        spent=_spent((*own.candidates, *own.repairs)),
        front=_front(own),
        beaten=tuple(
            _totals(c.scores, own.axes) for c in own.finished if own.axes and c.digest not in on_front
        ),
        picked=next((point.name for point in own.points if point.candidate is best), None),
        agreement=agreement([c.parsed for c in good], names, depth) if good else None,
        sizes={n: Size(*of) for n, of in own.meta["sizes"].items() if n in (BASE, FOUND)},
        held_out=tuple(_held_out(own, read)),
        gaps=_gaps(own),
        others=tuple(_other(one, box) for one in read if one.best is not None),
        warnings=tuple(own.meta["warnings"]),
        settings=_settings(own.document),
        versions={str(name): str(number) for name, number in own.document.get("environment", {}).items()},
        config=write_yaml(public({k: v for k, v in own.document.items() if k != "environment"})),
    )


def _check_comparable(own: Record, other: Record) -> None:
    where = f"--baseline: {other.directory.path}"
    if other.best is None:
        raise ConfigError(f"{where}: no candidate has been scored yet")
    if (own.fingerprint, own.axes) != (other.fingerprint, other.axes):
        raise ConfigError(f"{where} was scored on something else; expected a run of the same search config")


def _name(other: Record) -> str:
    return other.baseline or other.directory.path.resolve().name


def _other(other: Record, box: Box | None) -> Other:
    assert other.best is not None
    if box is not None:
        return Other(_name(other), box.volume([point.losses for point in other.points]), _front(other))
    assert other.best.loss is not None
    return Other(_name(other), other.best.loss, ())


def _unit(by_set: Mapping[str, Score]) -> str:
    return next(iter(by_set.values())).unit


def _is_negated(by_set: Mapping[str, Score]) -> bool:
    return _unit(by_set) == "negated"


def _summed(own: Record) -> tuple[str, ...]:
    """The objectives with a weight; the config has them in the order of the scores."""
    given = own.document["objectives"]
    return tuple(name for name, one in zip(own.objectives, given, strict=False) if one.get("weight"))


def _costs_first(own: Record) -> tuple[str, ...]:
    scores = {} if own.best is None else own.best.scores
    return tuple(sorted(own.axes, key=lambda name: name in scores and _unit(scores[name]) not in COSTS))


def _totals(scores: Scores, axes: Sequence[str]) -> dict[str, float]:
    shown = natural(scores)
    return {name: shown[name][TOTAL] for name in axes}


def _front(one: Record) -> tuple[FrontPoint, ...]:
    return tuple(FrontPoint(p.name, p.layers, _totals(p.candidate.scores, one.axes)) for p in one.points)


def _good(own: Record) -> list[Candidate]:
    """The front, or the best tenth of the recipes that were scored on everything."""
    if own.points:
        return [point.candidate for point in own.points][:MOST_GOOD]
    distinct = {candidate.digest: candidate for candidate in reversed(own.finished)}
    ranked = sorted((c for c in distinct.values() if c.loss is not None), key=lambda c: (c.loss, c.number))
    return ranked[: min(MOST_GOOD, max(1, round(GOOD_SHARE * len(ranked))))]


def _spent(candidates: Sequence[Candidate]) -> dict[str, Spent]:
    """In the order in which outcomes were first met."""
    by_status: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_status[candidate.status].append(candidate)
    return {
        status: Spent(len(some), sum(c.tokens for c in some), sum(c.seconds for c in some))
        for status, some in by_status.items()
    }


def _held_out(own: Record, read: Sequence[Record]) -> Iterator[HeldOut]:
    models = {name: own.held_out[name] for name in (*own.models, FOUND) if name in own.held_out}
    if FOUND not in models:
        return
    for other in read:
        if FOUND in other.held_out and _reported_on(other) == _reported_on(own):
            models[_name(other)] = other.held_out[FOUND]
    for objective, by_set in models[FOUND].items():
        for name in by_set:
            yield HeldOut(
                objective, name, {model: scores[objective][name] for model, scores in models.items()}
            )
        if len(by_set) > 1:
            totals = {m: Score.total(list(scores[objective].values())) for m, scores in models.items()}
            yield HeldOut(objective, TOTAL, totals)


def _reported_on(one: Record) -> Any:
    """Runs with equal values have held-out scores that may stand side by side."""
    shape = {
        objective: {name: score.count for name, score in by_set.items()}
        for objective, by_set in one.held_out[FOUND].items()
    }
    return [one.document["family"], one.document.get("held_out"), one.document["seed"], shape]


def _gaps(own: Record) -> tuple[Gap, ...]:
    stored = own.meta["gaps"].get(own.best.digest, []) if own.best is not None else []
    return tuple(Gap(**{**one, "sets": tuple(one["sets"])}) for one in stored)


def _settings(document: Mapping[str, Any]) -> dict[str, str]:
    """What a reader asks for first; the whole config stands beside it."""
    search, operations = document["search"], document["operations"]
    target = ", ".join(f"{name} {_written(value)}" for name, value in document["target"].items())
    return {
        "target": target,
        "merge methods": ", ".join(operations["merge"]) or "none",
        "optimiser": search["optimizer"],
        "budget": f"{search['budget']:,} candidates in generations of {search['population']}",
        "seed": str(document["seed"]),
        "merge arithmetic": document["dtype"],
    }


def _written(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
