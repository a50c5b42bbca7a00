"""`gptailor push` and `gptailor reproduce`: the commands that talk to the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptailor_merge.cli import printing
from gptailor_merge.cli.options import License, RunDirectory
from gptailor_merge.cli.terminal import say


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(push)
    app.command()(reproduce)


def push(
    run: RunDirectory,
    repo: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub to publish to.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it is not there yet.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of changing main.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="A branch, made if it is not there yet; or refs/pr/N."),
    ] = None,
    commit_message: Annotated[
        str | None,
        typer.Option(help="Message of the commit. Default: the number of layers and the recipe's digest."),
    ] = None,
    license_: License = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Upload nothing; write the files to RUN/hub and list them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another run or person has put there.")
    ] = False,
) -> None:
    """Publish a run's model on the Hub, with a card that says how it was made."""
    from gptailor_merge import Run
    from gptailor_merge.api.hub import prepare_push
    from gptailor_merge.api.library_logs import quiet_libraries

    quiet_libraries()
    publication = prepare_push(
        repo,
        private=private,
        create_pr=create_pr,
        revision=revision,
        commit_message=commit_message,
        license=license_,
        overwrite=overwrite,
    )
    if dry_run:
        printing.files(publication.write(Run(run), say))
        return
    _show_uploads()
    printing.pushed(publication.publish(Run(run), say))


def reproduce(
    repo: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="A repository that gptailor push has made.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit of it. Default: main.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the model that is built, in this new directory.")
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Where a member is that is on no Hub. May be given several times."
        ),
    ] = None,
) -> None:
    """Build a published model again from its members, and compare every tensor.

    Exits with 1 if they differ.
    """
    from gptailor_merge.api.hub import reproduce as build_again
    from gptailor_merge.api.library_logs import quiet_libraries

    quiet_libraries()
    comparison = build_again(repo, revision=revision, out=out, members=member or (), on_step=say)
    printing.comparison(repo, comparison)
    if not comparison.equal:
        raise typer.Exit(1)


def _show_uploads() -> None:
    """Shows on a terminal how far an upload is; it may take gigabytes."""
    from huggingface_hub.utils.tqdm import enable_progress_bars

    if sys.stderr.isatty():
        enable_progress_bars()
