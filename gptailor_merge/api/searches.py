"""Runs searches and baselines: a config goes in, a run directory comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from gptailor_merge.api.arguments import AnyPath, ignore, path_of, read_config
from gptailor_merge.api.forecasts import forecast
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import errors_in
from gptailor_merge.forecast.forecast import Forecast
from gptailor_merge.host.materialize import is_of, materialize
from gptailor_merge.hub.publication import Publication
from gptailor_merge.models.devices import pick_device
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.page import write_report
from gptailor_merge.runs.claim import refuse_other_runs
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.executor_pools import LOCAL
from gptailor_merge.scoring.workplace import BankMode
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.tracking.feed import tracker_feed
from gptailor_merge.tracking.registry import tracker_factories


def search(
    config: AnyPath | SearchConfig,
    out: AnyPath,
    *,
    budget: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    bank: BankMode = "auto",
    executor: str = LOCAL,
    workers: int | Literal["auto"] | None = None,
    ray_address: str | None = None,
    racing: bool | None = None,
    start: Sequence[AnyPath] = (),
    pick: str | None = None,
    allow_test_split: bool = False,
    repair: bool = True,
    tune: bool = True,
    resume: bool = False,
    model: bool = True,
    publication: Publication | None = None,
    report_to: Sequence[str] = (),
    on_forecast: Callable[[Forecast], None] | None = None,
    on_begin: Callable[[int], None] = lambda candidates: None,
    on_step: Callable[[str], None] = ignore,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Run:
    """Searches a family for the best pruned model, writes it, and returns the run.

        run = search("recipes/demo/search.yml", "runs/first", budget=32, device="cpu")
        print(run.best.read_text())

    Args:
        config: the search config, or its file.
        out: the run directory to make.
        budget: number of candidates; replaces `search.budget` of the config.
        seed: replaces `seed`.
        device: auto, cpu, cuda, cuda:N or mps.
        bank: where the family's weights live; auto keeps them on the device if they fit.
        executor: name of the executor that scores the candidates; "local" is this process.
        workers: how many processes score, by Ray; replaces `search.workers`. "auto" is one for each GPU.
        ray_address: HOST:PORT of a Ray cluster to score on, or "auto"; default Ray on this machine.
        racing: replaces `search.racing`.
        start: recipe files to start from; replace `search.start`.
        pick: which recipe of a front is taken; replaces `search.pick`.
        allow_test_split: allows searching on the test splits of tasks; every report says so.
        repair: False leaves the best recipes as they are; like `repair.finalists: 0`.
        tune: False tunes no recipe; like `tune.steps: 0`.
        resume: continues the run that `out` holds.
        model: False writes the recipe and no model.
        publication: where the model is to be published afterwards, see prepare_push; the Hub is asked before
            the search begins whether it would be accepted.
        report_to: trackers that are told of every candidate: trackio, wandb, tensorboard.
        on_forecast: called before anything is done with what a new search will take, which is reckoned only
            if this is given; a batch goes through the base for it.
        on_begin: called with the number of candidates before anything is done.
        on_step: called with a sentence on what is being done.
        on_candidate: called with every candidate in order.

    Raises:
        InputError: the config, an option or a model is wrong; nothing was written.
        RunError: the search, the merge or the Hub failed.
    """
    trackers = tracker_factories(report_to)
    whole, file = read_config(config)
    settings = whole.override(
        budget=budget,
        seed=seed,
        racing=racing,
        start=[path_of(recipe) for recipe in start],
        pick=pick,
        workers="auto"
        if workers is None and ray_address is not None and whole.search.workers is None
        else workers,
        allow_test_split=allow_test_split,
        repair=repair,
        tune=tune,
    )
    run, torch_device = Run(path_of(out)), pick_device(device)
    refuse_other_runs(run, resume=resume)
    if publication is not None:
        publication.check(settings)
    on_begin(settings.search.budget)
    if on_forecast is not None and not resume:
        measure = executor == LOCAL
        with errors_in(file):
            expected = forecast(settings, device=device, bank=bank, measure=measure, on_step=on_step)
        on_forecast(expected)

    def finish(run: Run) -> None:
        feed.keep_results(run.summary())
        if model and not is_of(run.model, run.best):
            on_step("writing the model")
            best = Recipe.load(run.best)
            # The summary of the run has the warnings, with the names of the members.
            materialize(best, run.model, file=run.best, replace=True, on_warning=ignore)
        write_report(run)

    with tracker_feed(trackers, run.path, settings) as feed:
        execute(
            settings,
            run,
            torch_device,
            resume=resume,
            bank=bank,
            executor=executor,
            address=ray_address,
            file=file,
            on_step=on_step,
            on_candidate=feed.after(on_candidate),
            finish=finish,
        )
    return run


def baseline(
    name: str,
    config: AnyPath | SearchConfig,
    out: AnyPath,
    *,
    budget: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    member: str | None = None,
    merge: str | None = None,
    allow_test_split: bool = False,
    resume: bool = False,
    on_begin: Callable[[int], None] = lambda candidates: None,
    on_step: Callable[[str], None] = ignore,
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Run:
    """Prunes by a published method, to the size and by the objectives of a search config.

        run = baseline("shortgpt", "recipes/demo/search.yml", "runs/shortgpt", device="cpu")
        print(run.summary().baseline)

    Args:
        name: best_merge, one_shot, shortgpt, uidl, sleb, lazy_greedy, laco, evopress, random, or one of
            another package.
        budget: number of candidates that evopress and random propose; replaces `search.budget`.
        member: the member that is pruned; default the base.
        merge: prunes a merge of all members instead: linear, task_arithmetic or ties.

    The other arguments are those of `search`.

    Raises:
        InputError, RunError: see `search`.
    """
    choice = Choice(name, member, merge)
    method = choice.method
    whole, file = read_config(config)
    settings = whole.override(budget=budget, seed=seed, allow_test_split=allow_test_split)
    with errors_in(file):
        space = prepare(settings).space
    run, torch_device = Run(path_of(out)), pick_device(device)
    on_begin(method.candidates(space, settings.search.budget))
    execute(
        settings,
        run,
        torch_device,
        resume=resume,
        file=file,
        baseline=choice,
        on_step=on_step,
        on_candidate=on_candidate,
    )
    return run
