"""`gptailor-evolve`, `gptailor baseline` and `gptailor show`: searches, and what they have found."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gptailor_merge.cli import printing, terminal
from gptailor_merge.cli.interruption import resumable
from gptailor_merge.cli.options import BankPlace, Device, Json, License, Resume, RunDirectory, TestSplit
from gptailor_merge.cli.progress import progress
from gptailor_merge.cli.terminal import say
from gptailor_merge.documents import json_text
from gptailor_merge.errors import ConfigError
from gptailor_merge.host.names_and_commands import WRITTEN
from gptailor_merge.visible_text import visible_line

if TYPE_CHECKING:
    from gptailor_merge import Publication

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The search config, a YAML file.")]

Out = Annotated[Path, typer.Option(help="The run directory to make.")]


def register(app: typer.Typer) -> None:
    """Adds the commands that belong to `gptailor`."""
    app.command()(baseline)
    app.command()(show)


def evolve(
    config: Config,
    out: Annotated[
        Path | None, typer.Option(help="The run directory to make; only --dry-run needs none.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Candidates to try; replaces search.budget of CONFIG."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of the search; replaces seed of CONFIG.")
    ] = None,
    device: Device = "auto",
    bank: BankPlace = "auto",
    executor: Annotated[
        str, typer.Option(metavar="NAME", help="Who scores the candidates; local is this process.")
    ] = "local",
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that score, by Ray: a number, or auto for one on each GPU; replaces "
            "search.workers.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A Ray cluster to score on, or auto. Default: this machine."),
    ] = None,
    racing: Annotated[
        bool | None,
        typer.Option(
            "--racing/--no-racing",
            help="Drop candidates that cannot win before they are scored on everything; replaces "
            "search.racing.",
        ),
    ] = None,
    start: Annotated[
        list[Path] | None,
        typer.Option(metavar="RECIPE...", help="Recipes to start from; they replace search.start."),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            help="Which recipe of a front to take: knee, best:OBJECTIVE or layers=N; replaces search.pick."
        ),
    ] = None,
    allow_test_split: TestSplit = False,
    no_repair: Annotated[
        bool, typer.Option("--no-repair", help="Do not repair the best recipes (repair.finalists: 0).")
    ] = False,
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="Do not tune the best recipe (tune.steps: 0).")
    ] = False,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the search will take, and write nothing.")
    ] = False,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Write the best recipe, and no model.")
    ] = False,
    push_to_hub: Annotated[
        bool, typer.Option("--push-to-hub", help="Publish the model on the Hub at the end.")
    ] = False,
    hub_model_id: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="The repository to publish to, with --push-to-hub."),
    ] = None,
    hub_private_repo: Annotated[
        bool, typer.Option("--hub-private-repo", help="Make the repository private.")
    ] = False,
    hub_revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Publish to a branch of the repository.")
    ] = None,
    license_: License = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER...", help="Trackers to tell: trackio, wandb or tensorboard. Default: none."
        ),
    ] = None,
) -> None:
    """Search a family for the best pruned model, and write it."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.searches import search

    quiet_libraries()
    if dry_run:
        _forecast(
            config,
            budget=budget,
            seed=seed,
            device=device,
            bank=bank,
            racing=racing,
            start=start or (),
            pick=pick,
            allow_test_split=allow_test_split,
            repair=not no_repair,
            tune=not no_tune,
        )
        return
    if out is None:
        raise ConfigError("Missing option '--out', the run directory to make; only --dry-run needs none")
    publication = _publication(
        push_to_hub,
        hub_model_id,
        private=hub_private_repo,
        revision=hub_revision,
        license=license_,
        no_model=no_model,
    )
    with resumable(out), progress() as shown:
        run = search(
            config,
            out,
            budget=budget,
            seed=seed,
            device=device,
            bank=bank,
            executor=executor,
            workers=_workers(workers),
            ray_address=ray_address,
            racing=racing,
            start=start or (),
            pick=pick,
            allow_test_split=allow_test_split,
            repair=not no_repair,
            tune=not no_tune,
            resume=resume,
            model=not no_model,
            publication=publication,
            report_to=report_to or (),
            on_forecast=partial(printing.forecast, apart=True),
            on_begin=shown.begin,
            on_step=shown.step,
            on_candidate=shown.candidate,
        )
    printing.summary(run.summary())
    terminal.line(f"recipe  {run.best}")
    if not no_model:
        terminal.line(f"model   {run.model}  ({WRITTEN})")
    terminal.line(f"report  {run.report}")
    if publication is not None:
        printing.pushed(publication.publish(run, say))


def _workers(value: str | None) -> int | Literal["auto"] | None:
    """Returns the number of workers that an option asks for.

    Raises:
        ConfigError: it is neither a number nor auto.
    """
    if value is None or value == "auto":
        return None if value is None else "auto"
    if not (value.isascii() and value.isdecimal() and int(value)):
        raise ConfigError(f"--workers: expected auto or a whole number from 1, found {visible_line(value)}")
    return int(value)


def _forecast(config: Path, **options: Any) -> None:
    from gptailor_merge.api.forecasts import forecast

    printing.forecast(forecast(config, on_step=say, **options))


def baseline(
    name: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="best_merge, one_shot, shortgpt, uidl, sleb, lazy_greedy, laco, evopress or random.",
        ),
    ],
    config: Config,
    out: Out,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Candidates that evopress and random try; replaces search.budget of CONFIG.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of the method; replaces seed of CONFIG.")
    ] = None,
    device: Device = "auto",
    member: Annotated[
        str | None, typer.Option(help="Name of the member to prune. Default: the base.")
    ] = None,
    merge_method: Annotated[
        str | None,
        typer.Option("--merge", help="Prune a merge of all members: linear, task_arithmetic or ties."),
    ] = None,
    allow_test_split: TestSplit = False,
    resume: Resume = False,
) -> None:
    """Prune by a published method, to the size and by the objectives of a search config."""
    from gptailor_merge.api.library_logs import quiet_libraries
    from gptailor_merge.api.searches import baseline as prune

    quiet_libraries()
    with resumable(out), progress() as shown:
        run = prune(
            name,
            config,
            out,
            budget=budget,
            seed=seed,
            device=device,
            member=member,
            merge=merge_method,
            allow_test_split=allow_test_split,
            resume=resume,
            on_begin=shown.begin,
            on_step=shown.step,
            on_candidate=shown.candidate,
        )
    printing.summary(run.summary())
    terminal.line(f"recipe  {run.best}")


def show(
    run: RunDirectory,
    pareto: Annotated[bool, typer.Option("--pareto", help="Show all recipes of the front.")] = False,
    pick: Annotated[
        str | None, typer.Option(help="Show this recipe of the front: knee, best:OBJECTIVE or layers=N.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a run has found so far."""
    from gptailor_merge import Run

    summary = Run(run).summary(pick)
    if as_json:
        terminal.line(json_text(summary.to_json()))
    elif pareto:
        printing.front(summary)
    else:
        printing.summary(summary)
        terminal.line(f"recipe  {summary.recipe}")


def _publication(
    asked: bool,
    repo: str | None,
    *,
    private: bool,
    revision: str | None,
    license: str | None,
    no_model: bool,
) -> Publication | None:
    """Returns how the model is to be published, if it is.

    Raises:
        ConfigError: options that do not go together.
    """
    from gptailor_merge.api.hub import prepare_push

    if not asked:
        options = {
            "--hub-model-id": repo,
            "--hub-private-repo": private,
            "--hub-revision": revision,
            "--license": license,
        }
        useless = next((name for name, value in options.items() if value), None)
        if useless:
            raise ConfigError(f"{useless} is for --push-to-hub, which is not given")
        return None
    if repo is None:
        raise ConfigError("--push-to-hub needs --hub-model-id USER/NAME")
    if no_model:
        raise ConfigError("--push-to-hub publishes the model; leave out --no-model")
    return prepare_push(repo, private=private, revision=revision, license=license)
