"""A run: the directory that a search fills, from a config to the best recipe and its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, ScoringError, errors_in
from gptailor_merge.files import write_beside
from gptailor_merge.models.devices import compute_dtype
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.finalists import drop_maps, repair_finalists
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.session import BankMode, Plans, Session, measure_members, prepare, start
from gptailor_merge.runs.summary import BASELINE, FOUND, Summary, summarize
from gptailor_merge.scoring.evaluator import Evaluator, Outcome
from gptailor_merge.scoring.gap import gap
from gptailor_merge.scoring.uncertainty import with_errors
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.driver import prune, search
from gptailor_merge.search.front import check_rule, front, pick


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
    subject = None if baseline is None else baseline.subject(plans.family, plans.space)
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
                start=[plan(recipe) for recipe in plans.start],
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
                subject=subject,
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
        layers = {"base": range(family.depth), **{n: c.plan.kept for n, c in found.items()}}
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


def _write_front(directory: Path, found: Mapping[str, Candidate]) -> None:
    """The recipes of the front, and no others."""
    directory.mkdir(exist_ok=True)
    for name, candidate in found.items():
        write_beside(directory / f"{name}.yml", candidate.recipe)
    for file in directory.glob("*.yml"):
        if file.stem not in found:
            file.unlink()


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
    distinct = {candidate.digest: candidate.plan for candidate in found.values()}
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
