"""`gptailor push` and `gptailor reproduce`, and what gptailor-evolve needs to publish."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.errors import ConfigError

if TYPE_CHECKING:
    from gptailor_merge.hub.client import Pushed
    from gptailor_merge.hub.publication import Publication

License = Annotated[
    str | None,
    typer.Option("--license", help="Of the model, e.g. apache-2.0; default the one that all members state."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(push)
    app.command()(reproduce)


def push(
    run: Annotated[Path, typer.Argument(help="A run directory of gptailor-evolve.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, if it is not there yet.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of changing main.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="A branch, made if it is not there; or refs/pr/N.")
    ] = None,
    commit_message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    license_: License = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be uploaded to RUN/hub and list it.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another run or person has put there.")
    ] = False,
) -> None:
    """Publish a run's model on the Hub, with a card that says how it was made."""
    from gptailor_merge.hub.client import Destination
    from gptailor_merge.hub.publication import Publication
    from gptailor_merge.runs.run import Run

    quiet_libraries()
    target = Destination(repo, private, create_pr, revision, overwrite, commit_message)
    publication = Publication(target, license_)
    if dry_run:
        _list(publication.write(Run(run), say))
        return
    _show_uploads()
    tell(publication.publish(Run(run), say))


def reproduce(
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="A repository made by gptailor push.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit; default main.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The model directory to make; default a temporary one.")
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH: where a member is that is on no Hub; may be repeated."),
    ] = None,
) -> None:
    """Build a published model again from its members, and compare every tensor.

    Exits with 1 where they differ.
    """
    from gptailor_merge.files import refuse_existing
    from gptailor_merge.hub.reproduce import compare, fetch, members_given, rebuild

    quiet_libraries()
    members = members_given(member or ())
    if out is not None:
        refuse_existing(out)
    say(f"downloading {repo}")
    published = fetch(repo, revision)
    with tempfile.TemporaryDirectory() as scratch:
        made = out or Path(scratch) / "model"
        say("building it again")
        rebuild(published, members, made)
        found = compare(published, made)
    for difference in found.differences:
        typer.echo(difference)
    if not found.equal:
        typer.echo(f"{repo}: not equal, {len(found.differences)} differences")
        raise typer.Exit(1)
    typer.echo(f"{repo}: equal, {found.tensors} tensors and the config")


def publication(
    asked: bool,
    repo: str | None,
    *,
    private: bool,
    revision: str | None,
    licence: str | None,
    no_model: bool,
) -> Publication | None:
    """What gptailor-evolve publishes, if it is asked to.

    Raises:
        ConfigError: options that do not go together.
    """
    from gptailor_merge.hub.client import Destination
    from gptailor_merge.hub.publication import Publication

    if not asked:
        given = {"--hub-model-id": repo, "--hub-private-repo": private, "--hub-revision": revision}
        useless = next((name for name, value in {**given, "--license": licence}.items() if value), None)
        if useless:
            raise ConfigError(f"{useless} is for --push-to-hub, which is not given")
        return None
    if repo is None:
        raise ConfigError("--push-to-hub needs --hub-model-id USER/NAME")
    if no_model:
        raise ConfigError("--push-to-hub publishes the model; leave out --no-model")
    return Publication(Destination(repo, private=private, revision=revision), licence)


def tell(pushed: Pushed) -> None:
    """What became of a push."""
    if not pushed.changed:
        typer.echo(f"unchanged  {pushed.url}  (everything is there already, no commit was made)")
        return
    tag = f"  (tag {pushed.tag})" if pushed.tag else ""
    typer.echo(f"published  {pushed.url}{tag}")


def _list(directory: Path) -> None:
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    for file in files:
        typer.echo(f"{file.stat().st_size:>14,}  {file.relative_to(directory)}")
    typer.echo(
        f"{sum(file.stat().st_size for file in files):>14,}  bytes in {directory}; nothing was uploaded"
    )


def say(step: str) -> None:
    Console(stderr=True).print(step, markup=False, highlight=False)


def _show_uploads() -> None:
    """An upload of gigabytes shows how far it is; nobody watches a file."""
    from huggingface_hub.utils.tqdm import enable_progress_bars

    if sys.stderr.isatty():
        enable_progress_bars()
