"""A search or a baseline fills a run directory, from a config to the best recipe and its held-out scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import errors_in
from gptailor_merge.files import make_directory, write_beside
from gptailor_merge.healing.finalists import check_healing, heal_finalists, write_facts
from gptailor_merge.models.contents import contents_of
from gptailor_merge.models.family import Family
from gptailor_merge.models.stored_values import differences_told
from gptailor_merge.planning.resolve import plan
from gptailor_merge.repair.finalists import drop_files, repair_finalists
from gptailor_merge.repair.refining import FinalistJudge
from gptailor_merge.runs.claim import as_begun, claim, describe, threads_before, versions_at_begin
from gptailor_merge.runs.continuations import continuations
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.held_out import score_held_out
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.lock import locked
from gptailor_merge.runs.metadata import Dimensions
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.provenance import inputs_of
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.stages import stages_in
from gptailor_merge.scoring.executor_pools import EXECUTORS, LOCAL, RAY, fitter_of
from gptailor_merge.scoring.threads import choose_threads, computing_with
from gptailor_merge.scoring.workplace import BankMode, Job, open_workplace
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.driver import OnCandidate, prune, search
from gptailor_merge.search.front import NAMED_DIGITS, front, pick
from gptailor_merge.search.settings import settings_for
from gptailor_merge.tuning.finalists import tune_finalists

OnStep = Callable[[str], None]


def execute(
    config: SearchConfig,
    run: Run,
    device: torch.device,
    *,
    resume: bool = False,
    bank: BankMode = "auto",
    executor: str = LOCAL,
    address: str | None = None,
    file: Path | None = None,
    baseline: Choice | None = None,
    on_step: OnStep = lambda step: None,
    on_candidate: OnCandidate = lambda candidate: None,
    finish: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Searches, writes best.yml, scores it and the members on the held-out set, and returns the run.

    The run is locked before anything is written, and until `finish` has returned.

    Args:
        resume: continue the run that is in the directory.
        bank: where the family's weights live.
        executor: the name of the executor that scores plans, see scoring.executor_pools; where the config
            asks for workers, it is Ray's instead of this process.
        address: of the cluster that workers are on.
        file: the config's file, for error messages.
        baseline: is run instead of a search.
        on_step: is told each step.
        on_candidate: is told every candidate in order.
        finish: is called at the end with the run, to write what else it is to hold.

    Raises:
        ConfigError: a config that the family does not allow, a directory that holds another run or that
            another process is writing, or models or data that have changed since the run was begun.
        FamilyError, DataError: models or texts that cannot be used.
        SearchError, ScoringError: the search failed.
    """
    workers = config.search.workers
    if executor == LOCAL and (workers is not None or address is not None):
        executor = RAY
    EXECUTORS[executor]  # an unknown name is an error before anything is written
    config = as_begun(config, run) if resume else config
    on_step("reading the family")
    with errors_in(file):
        preparation = prepare(config)
    subject = None if baseline is None else baseline.subject(preparation.family, preparation.space)
    with (
        locked(run.path, advice="wait until it ends, or choose another --out", make=True),
        ExitStack() as stack,
    ):
        contents = contents_of(preparation.family.members)
        is_new = claim(config, run, contents, resume=resume)
        before = None if is_new else threads_before(run)
        layer_size = preparation.family.layer_sizes[0]
        threads = choose_threads(
            device, layer_size, before=before, is_new=is_new, has_workers=executor == RAY
        )
        stack.enter_context(computing_with(threads))
        with errors_in(file):
            differences = differences_told(preparation.family, on_step)
            workplace = open_workplace(config, preparation.family, device, bank=bank, progress=on_step)
            config = workplace.config  # with the size of batches that was found
            settings, measures = settings_for(workplace, preparation.space.sizes), workplace.measures
            job = Job.of(config, device, bank, workers or "auto", address)
            pool = EXECUTORS[executor](job, workplace)
            scoring = pool.executor("objectives")
            held_out = pool.executor("held_out") if measures.held_out.objectives else None
            gates = workplace.gates(pool.executor("gates")) if config.gates else None
        with closing(pool), Journal(run.journal) as journal:
            inputs, warnings = inputs_of(workplace, contents), (*measures.warnings, *differences)
            describe(journal, run, settings.axes, baseline, inputs, warnings, threads, on_step)
            journal.record_items(measures.items)
            write_beside(run.config, config.to_yaml(versions_at_begin(run)))
            if baseline is None:
                check_healing(workplace)
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
                # An absolute path, so that workers in other directories find the maps.
                maps, judge = run.repairs.absolute(), FinalistJudge(scoring, gates, settings)
                fitter = fitter_of(pool, workplace)
                repair_finalists(workplace, fitter, judge, journal, maps)
                tune_finalists(workplace, fitter, judge, journal, maps)
                heal_finalists(workplace, judge, journal, maps)
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
            write_facts(workplace, chosen[FOUND], run.path)
            stages = [stage.best for stage in stages_in(journal, settings.axes, config.search.pick)]
            sizes = _sizes(preparation.family, chosen)
            journal.describe(replace(journal.metadata(), sizes=sizes))
            if held_out is not None:
                on_step("scoring on the held-out set")
                score_held_out(workplace, scoring, held_out, journal, chosen, stages)
            known = journal.metadata()
            whole = preparation.space.select(0, set())
            written = continuations(workplace, whole, chosen[FOUND], known.writes)
            journal.describe(replace(known, writes=written))
            drop_files(journal, run.repairs, chosen.values())
        finish(run)
    return run


def _write_chosen(
    run: Directory, journal: Journal, config: SearchConfig, axes: tuple[str, ...], best: Candidate
) -> dict[str, Candidate]:
    """Writes the best recipe and those of the front, and returns name -> recipe."""
    chosen = {}
    if axes:
        points = front(journal.finished(), axes)
        chosen = {point.name: point.candidate for point in points}
        _write_front(run.pareto, chosen, journal.finished())
        best = pick(points, config.search.pick, axes).candidate
    write_beside(run.best, best.text)
    chosen[FOUND] = best
    return chosen


def _write_front(directory: Path, recipes: Mapping[str, Candidate], known: Iterable[Candidate]) -> None:
    """Writes the recipes of the front, and removes those that are no longer on it.

    Args:
        known: all that the run has found; files with other recipes stay.
    """
    make_directory(directory)
    for name, candidate in recipes.items():
        write_beside(directory / f"{name}.yml", candidate.text)
    left = {
        file.stem: file for file in directory.glob("*.yml") if file.stem not in recipes and file.is_file()
    }
    for candidate in known if left else ():
        for stem in [stem for stem in left if candidate.digest.startswith(stem[-NAMED_DIGITS:])]:
            if left[stem].read_bytes() == candidate.text.encode():
                left.pop(stem).unlink()


def _sizes(family: Family, chosen: Mapping[str, Candidate]) -> dict[str, Dimensions]:
    """Returns the dimensions of the base and of each chosen recipe."""
    layers = {"base": range(family.depth), **{name: c.plan.kept for name, c in chosen.items()}}
    return {name: Dimensions(len(kept), family.parameters(kept)) for name, kept in layers.items()}
