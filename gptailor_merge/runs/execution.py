"""A search or a baseline fills a run directory, from a config to the best recipe and its held-out scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, errors_in
from gptailor_merge.files import write_beside
from gptailor_merge.models.family import Family
from gptailor_merge.models.stored_values import differences_told
from gptailor_merge.planning.resolve import plan
from gptailor_merge.repair.finalists import FinalistJudge, drop_maps, repair_finalists
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.held_out import score_held_out
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.metadata import Dimensions
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.executor_pools import EXECUTORS, LOCAL
from gptailor_merge.scoring.measures import Measures
from gptailor_merge.scoring.workplace import BankMode, Job, open_workplace
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.driver import OnCandidate, prune, search
from gptailor_merge.search.front import front, pick
from gptailor_merge.search.settings import settings_for

OnStep = Callable[[str], None]


def execute(
    config: SearchConfig,
    run: Run,
    device: torch.device,
    *,
    resume: bool = False,
    bank: BankMode = "auto",
    executor: str = LOCAL,
    file: Path | None = None,
    baseline: Choice | None = None,
    on_step: OnStep = lambda step: None,
    on_candidate: OnCandidate = lambda candidate: None,
) -> Run:
    """Searches, writes best.yml, scores it and the members on the held-out set, and returns the run.

    Args:
        resume: continue the run that is in the directory.
        bank: where the family's weights live.
        executor: the name of the executor that scores plans, see scoring.executor_pools.
        file: the config's file, for error messages.
        baseline: is run instead of a search.
        on_step: is told each step.
        on_candidate: is told every candidate in order.

    Raises:
        ConfigError: a config that the family does not allow, or a directory that holds another run.
        FamilyError, DataError: models or texts that cannot be used.
        SearchError, ScoringError: the search failed.
    """
    EXECUTORS[executor]  # an unknown name is an error before anything is written
    on_step("reading the family")
    with errors_in(file):
        preparation = prepare(config)
    subject = None if baseline is None else baseline.subject(preparation.family, preparation.space)
    _claim(config, run, resume=resume)
    with errors_in(file):
        differences = differences_told(preparation.family, on_step)
        workplace = open_workplace(config, preparation.family, device, bank=bank, progress=on_step)
        settings, measures = settings_for(workplace, preparation.space.sizes), workplace.measures
        pool = EXECUTORS[executor](Job.of(config, device, bank), workplace)
        scoring = pool.executor("objectives")
        held_out = pool.executor("held_out") if measures.held_out.objectives else None
        gates = workplace.gates(pool.executor("gates")) if config.gates else None
    with closing(pool), Journal(run.journal) as journal:
        _describe(journal, measures, differences, settings.axes, baseline)
        on_step("searching" if baseline is None else str(baseline))
        parts = preparation.space, scoring, journal, settings
        if baseline is None:
            best = search(
                *parts,
                gate=gates,
                start=[plan(recipe) for recipe in preparation.start],
                warm=preparation.warm,
                hidden=workplace.hidden,
                on_candidate=on_candidate,
            )
            # An absolute path, so that a recipe's maps are found from everywhere.
            maps = run.repairs.resolve()
            repair_finalists(workplace, FinalistJudge(scoring, gates, settings), journal, maps)
            best = journal.best() or best
        else:
            best = prune(
                *parts,
                baseline.method,
                subject=subject,
                hidden=workplace.hidden,
                gate=gates,
                on_candidate=on_candidate,
            )
        chosen = _write_chosen(run, journal, config, settings.axes, best)
        sizes = _sizes(preparation.family, chosen)
        journal.describe(replace(journal.metadata(), sizes=sizes))
        if held_out is not None:
            on_step("scoring on the held-out set")
            score_held_out(workplace, scoring, held_out, journal, chosen)
    return run


def _claim(config: SearchConfig, directory: Directory, *, resume: bool) -> None:
    """Makes the run directory, or checks that it belongs to this config.

    Raises:
        ConfigError: the directory holds a run and `resume` is not asked for, or holds another one.
    """
    if directory.journal.exists() and not resume:
        raise ConfigError(
            f"{directory.path} already holds a run; continue it with --resume or choose another --out"
        )
    if directory.config.exists() and directory.journal.exists():
        changed = SearchConfig.load(directory.config).differences(config)
        if changed:
            raise ConfigError(
                f"{directory.path} was begun with another config; {', '.join(changed)} differ. "
                "Resume with the config it was begun with, or choose another --out"
            )
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory.path} cannot be made a directory: {error.strerror}") from None
    write_beside(directory.config, config.to_yaml())


def _describe(
    journal: Journal,
    measures: Measures,
    differences: tuple[str, ...],
    axes: tuple[str, ...],
    baseline: Choice | None,
) -> None:
    """Writes what the run is about: a search or one baseline, its objectives, its items, its warnings.

    Args:
        differences: sentences about what differs between members.

    Raises:
        ConfigError: the run was begun as something else.
    """
    asked = "" if baseline is None else str(baseline)
    begun = journal.metadata()
    if journal.counts().candidates and begun.baseline != asked:
        raise ConfigError(
            f"{journal.file} was begun by {begun.baseline or 'a search'}, not by {asked or 'a search'}"
        )
    journal.record_items(measures.items)
    journal.describe(replace(begun, baseline=asked, axes=axes, warnings=(*measures.warnings, *differences)))


def _write_chosen(
    run: Directory, journal: Journal, config: SearchConfig, axes: tuple[str, ...], best: Candidate
) -> dict[str, Candidate]:
    """Writes the best recipe and those of the front, drops all other maps, and returns name -> recipe."""
    chosen = {}
    if axes:
        points = front(journal.finished(), axes)
        chosen = {point.name: point.candidate for point in points}
        _write_front(run.pareto, chosen)
        best = pick(points, config.search.pick, axes).candidate
    write_beside(run.best, best.recipe)
    chosen[FOUND] = best
    drop_maps(run.repairs, chosen.values())
    return chosen


def _write_front(directory: Path, recipes: Mapping[str, Candidate]) -> None:
    """Writes the recipes of the front, and removes those that are no longer on it."""
    directory.mkdir(exist_ok=True)
    for name, candidate in recipes.items():
        write_beside(directory / f"{name}.yml", candidate.recipe)
    for file in directory.glob("*.yml"):
        if file.stem not in recipes:
            file.unlink()


def _sizes(family: Family, chosen: Mapping[str, Candidate]) -> dict[str, Dimensions]:
    """Returns the dimensions of the base and of each chosen recipe."""
    layers = {"base": range(family.depth), **{name: c.plan.kept for name, c in chosen.items()}}
    return {name: Dimensions(len(kept), family.parameters(kept)) for name, kept in layers.items()}
