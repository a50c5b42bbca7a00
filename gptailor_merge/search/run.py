"""A run: the directory that a search fills, from a config to the best recipe and its report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, ScoringError, errors_in
from gptailor_merge.recipe.operations import Plan, plan
from gptailor_merge.scoring.evaluator import Evaluator, Outcome
from gptailor_merge.scoring.objectives import Score, Scores
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.driver import prune, search
from gptailor_merge.search.finalists import drop_maps, repair_finalists
from gptailor_merge.search.front import Point, check_rule, front, pick
from gptailor_merge.search.gap import Gap, gap
from gptailor_merge.search.journal import Candidate, Counts, Journal, open_existing
from gptailor_merge.search.session import (
    BankMode,
    Plans,
    Session,
    compute_dtype,
    measure_members,
    prepare,
    start,
)
from gptailor_merge.search.uncertainty import with_errors

TOTAL = "total"
BASELINE = "baseline"
FOUND = "found"
"""The name of the best recipe in the held-out table, beside the members' names."""


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps what."""

    path: Path

    @property
    def config(self) -> Path:
        """The config with everything resolved."""
        return self.path / "config.yml"

    @property
    def journal(self) -> Path:
        """The SQLite file with every candidate."""
        return self.path / "journal.db"

    @property
    def best(self) -> Path:
        """The best recipe."""
        return self.path / "best.yml"

    @property
    def pareto(self) -> Path:
        """The recipes of the front."""
        return self.path / "pareto"

    @property
    def repairs(self) -> Path:
        """The maps of repaired recipes."""
        return self.path / "repair"

    @property
    def model(self) -> Path:
        """The written model."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"


@dataclass(frozen=True)
class FrontRow:
    """A recipe of the front.

    Attributes:
        scores: objective -> its total.
    """

    recipe: Path
    layers: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """What a run came to; values are in the units that users see.

    Attributes:
        front: the recipes that no other beats in every objective, where such a front was sought.
        held_out: model -> objective -> set -> score; models are the members, the found recipe, and
            those of the front by the names of their files.
        gaps: of the found recipe.
        warnings: sentences that belong beside the scores.
        baseline: which one the run is of, and of what model, where it is none of a search.
    """

    digest: str
    recipe: Path
    loss: float
    scores: Mapping[str, Mapping[str, float]]
    counts: Counts
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    sizes: Mapping[str, tuple[int, int]]
    front: tuple[FrontRow, ...] = ()
    gaps: tuple[Gap, ...] = ()
    warnings: tuple[str, ...] = ()
    baseline: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As `gptailor show --json` prints it."""
        counts = self.counts
        return {
            "digest": self.digest,
            "recipe": str(self.recipe),
            "loss": self.loss,
            "scores": self.scores,
            "candidates": counts.candidates,
            "failures": counts.failures,
            "duplicates": counts.duplicates,
            "dropped": counts.dropped,
            "gated": counts.gated,
            "repaired": counts.repaired,
            "tokens": counts.tokens,
            "seconds": round(counts.seconds, 3),
            "held_out": self.held_out,
            "sizes": {n: {"layers": x, "parameters": p} for n, (x, p) in self.sizes.items()},
            "front": [{**asdict(row), "recipe": str(row.recipe)} for row in self.front],
            "gaps": [{**asdict(one), "gap": one.difference} for one in self.gaps],
            "warnings": list(self.warnings),
            **({} if self.baseline is None else {"baseline": self.baseline}),
        }


def open_run(config: SearchConfig, run: RunDirectory, *, resume: bool) -> None:
    """Make the run directory, or check that it belongs to this config.

    Raises:
        ConfigError: the directory holds a run and `resume` is not asked for, or holds another one.
    """
    if run.journal.exists() and not resume:
        raise ConfigError(
            f"{run.path} already holds a run; continue it with --resume or choose another --out"
        )
    if run.config.exists() and run.journal.exists():
        changed = SearchConfig.load(run.config).differences(config)
        if changed:
            raise ConfigError(
                f"{run.path} was begun with another config; {', '.join(changed)} differ. "
                "Resume with the config it was begun with, or choose another --out"
            )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{run.path} cannot be made a directory: {error.strerror}") from None
    write_beside(run.config, config.to_yaml())


def execute(
    config: SearchConfig,
    run: RunDirectory,
    device: torch.device,
    *,
    resume: bool = False,
    bank: BankMode = "auto",
    file: Path | None = None,
    baseline: Choice | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Summary:
    """Search, write best.yml, and score the found recipe and the members on the held-out set.

    Args:
        bank: where the family's weights live.
        file: the config's file, for error messages.
        baseline: is done instead of a search.
        on_step: told what is being done.
        on_candidate: told of every candidate in order.
    """
    on_step("reading the family")
    with errors_in(file):
        plans = prepare(config)
    given = None if baseline is None else baseline.subject(plans.family, plans.space)
    open_run(config, run, resume=resume)
    with errors_in(file):
        session = start(plans, device, bank=bank, progress=on_step)
    axes = session.settings.axes
    with errors_in(file):
        check_rule(config.search.pick, axes, plans.space.sizes)
    with Journal(run.journal) as journal:
        _check_kind(journal, baseline)
        journal.record_items(session.measures.items)
        journal.set_meta("axes", json.dumps(axes))
        journal.set_meta("warnings", json.dumps(session.measures.warnings))
        on_step("searching" if baseline is None else str(baseline))
        parts = plans.space, session.evaluator, journal, session.settings
        if baseline is None:
            best = search(
                *parts,
                gate=session.gates,
                start=plans.start,
                warm=plans.warm,
                hidden=session.hidden,
                on_candidate=on_candidate,
            )
            # Absolute: a recipe's maps are found from everywhere.
            maps = run.repairs.resolve()
            repair_finalists(plans.family, session, journal, config.repair, maps, on_step)
            best = journal.best() or best
        else:
            best = prune(
                *parts,
                baseline.method,
                given=given,
                hidden=session.hidden,
                gate=session.gates,
                on_candidate=on_candidate,
            )
        found = {}
        if axes:
            points = front(journal.finished(), axes)
            found = {point.name: point.candidate for point in points}
            _write_front(run.pareto, found)
            best = pick(points, config.search.pick, axes).candidate
        write_beside(run.best, best.recipe)
        found[FOUND] = best
        drop_maps(run.repairs, found.values())
        family = plans.family
        layers = {"base": range(family.depth), **{n: plan(c.parsed).kept for n, c in found.items()}}
        sizes = {name: (len(some), family.parameters(some)) for name, some in layers.items()}
        journal.set_meta("sizes", json.dumps(sizes))
        if session.held_out is not None:
            on_step("scoring on the held-out set")
            _score_held_out(plans, session, journal, found, device)
    return summarize(run)


def _check_kind(journal: Journal, baseline: Choice | None) -> None:
    """A run is of one search, or of one baseline, and says so.

    Raises:
        ConfigError: it was begun as another.
    """
    asked = "" if baseline is None else str(baseline)
    begun = journal.meta(BASELINE) or ""
    if journal.counts().candidates and begun != asked:
        raise ConfigError(f"{journal.file} was begun by {begun or 'a search'}, not by {asked or 'a search'}")
    journal.set_meta(BASELINE, asked)


def summarize(run: RunDirectory, rule: str | None = None) -> Summary:
    """Read a run's journal.

    Args:
        rule: which recipe of a front is shown, see front.pick; default the one that the run took.

    Raises:
        InputError: the directory holds no run.
        ConfigError: nothing has been scored yet, or the front does not have what is asked for.
    """
    with open_existing(run.journal) as journal:
        axes = json.loads(journal.meta("axes") or "[]")
        points = front(journal.finished(), axes) if axes else []
        best = journal.best()
        if best is None:
            raise ConfigError(f"{run.path}: no candidate has been scored yet")
        recipe, name = run.best, FOUND
        if rule is not None and not axes:
            raise ConfigError(
                f"{run.path}: --pick is for runs that sought a front; this one sought one recipe"
            )
        if axes:
            point = pick(points, rule or SearchConfig.load(run.config).search.pick, axes)
            best = point.candidate
            if rule is not None:
                recipe, name = run.pareto / f"{point.name}.yml", point.name
        sizes = json.loads(journal.meta("sizes") or "{}")
        held_out = {model: natural(scores) for model, scores in journal.held_out().items()}
        if name != FOUND and name in held_out:
            held_out[FOUND], sizes[FOUND] = held_out[name], sizes[name]
        gaps = json.loads(journal.meta("gaps") or "{}").get(best.digest, [])
        return Summary(
            digest=best.digest,
            recipe=recipe,
            loss=best.loss if best.loss is not None else float("nan"),
            scores=natural(best.scores),
            counts=journal.counts(),
            held_out=held_out,
            sizes={name: (layers, parameters) for name, (layers, parameters) in sizes.items()},
            front=tuple(_front_row(run, point, axes) for point in points),
            gaps=tuple(Gap(**{**one, "sets": tuple(one["sets"])}) for one in gaps),
            warnings=tuple(json.loads(journal.meta("warnings") or "[]")),
            baseline=journal.meta(BASELINE) or None,
        )


def _front_row(run: RunDirectory, point: Point, axes: Sequence[str]) -> FrontRow:
    scores = natural(point.candidate.scores)
    return FrontRow(
        run.pareto / f"{point.name}.yml", point.layers, {name: scores[name][TOTAL] for name in axes}
    )


def _write_front(directory: Path, found: Mapping[str, Candidate]) -> None:
    """The recipes of the front, and no others."""
    directory.mkdir(exist_ok=True)
    for name, candidate in found.items():
        write_beside(directory / f"{name}.yml", candidate.recipe)
    for file in directory.glob("*.yml"):
        if file.stem not in found:
            file.unlink()


def natural(scores: Scores) -> dict[str, dict[str, float]]:
    """Scores in the units that users see, with a total over each objective's tokens."""
    shown = {}
    for objective, by_set in scores.items():
        units = {name: score.natural for name, score in by_set.items()}
        shown[objective] = {**units, TOTAL: Score.total(list(by_set.values())).natural}
    return shown


def write_beside(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _score_held_out(
    plans: Plans, session: Session, journal: Journal, found: Mapping[str, Candidate], device: torch.device
) -> None:
    """The members' scores do not change in a resumed run; those of what was found may."""
    evaluator = session.held_out
    assert evaluator is not None
    known = journal.held_out()
    if any(member.name not in known for member in plans.family.members):
        assert plans.space.out_dtype is not None
        dtype = compute_dtype(device, plans.space.out_dtype)
        for name, measured in measure_members(evaluator, plans.family, device, dtype).items():
            journal.record_held_out(name, with_errors(evaluator.passes, measured))
    # The picked recipe is also one of the front's: each model is scored once.
    distinct = {candidate.digest: plan(candidate.parsed) for candidate in found.values()}
    pairs = session.measures.pairs
    reported = _scored(evaluator, distinct)
    searched = _scored(session.evaluator, distinct) if pairs else {}
    for name, candidate in found.items():
        measured = reported[candidate.digest].measured
        journal.record_held_out(name, with_errors(evaluator.passes, measured))
    gaps = {
        digest: [
            asdict(
                gap(
                    pair,
                    (session.evaluator.passes, again.measured),
                    (evaluator.passes, reported[digest].measured),
                    session.settings.seed,
                )
            )
            for pair in pairs
        ]
        for digest, again in searched.items()
    }
    journal.keep_held_out({*(member.name for member in plans.family.members), *found})
    journal.set_meta("gaps", json.dumps(gaps))


def _scored(evaluator: Evaluator, plans: Mapping[str, Plan]) -> dict[str, Outcome]:
    """By digest.

    Raises:
        ScoringError: one of them failed.
    """
    outcomes = dict(zip(plans, evaluator.score(list(plans.values())), strict=True))
    for digest, outcome in outcomes.items():
        if outcome.cause is not None:
            raise ScoringError(f"{digest} was found, and could not be scored again: {outcome.cause}")
    return outcomes
