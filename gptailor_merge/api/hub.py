"""Publishes the model of a run on the Hub, and builds a published model again to compare the two."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gptailor_merge.api.arguments import AnyPath, ignore, path_of, run_in
from gptailor_merge.files import refuse_existing
from gptailor_merge.hub.client import Destination, Pushed
from gptailor_merge.hub.publication import Publication
from gptailor_merge.hub.reproduce import Comparison, compare, fetch, members_given, rebuild
from gptailor_merge.runs.lock import locked_around
from gptailor_merge.runs.run import Run


def prepare_push(
    repo: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Publication:
    """Says where and how a model will be published; `search` checks it before the search begins.

        publication = prepare_push("me/tailored", license="apache-2.0")
        run = search("search.yml", "runs/first", publication=publication)
        publication.publish(run)

    Args: see `push`.

    Raises:
        ConfigError: no name of a repository, or options that do not go together.
    """
    return Publication(Destination(repo, private, create_pr, revision, overwrite, commit_message), license)


def push(
    run: AnyPath | Run,
    repo: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] = ignore,
) -> Pushed:
    """Publishes a run's model on the Hub, with a card that says how it was made.

        pushed = push("runs/first", "me/tailored", private=True)
        print(pushed.url)

    Args:
        run: a run, or its directory.
        repo: USER/NAME of the repository.
        private: makes the repository private, if it is not there yet.
        create_pr: opens a pull request instead of changing main.
        revision: a branch, which is made if it is not there, or refs/pr/N.
        commit_message: default the number of layers and the recipe's digest.
        license: the licence of the model; default the one that all members state.
        overwrite: replaces what another run or person has put there.
        on_step: called with a sentence on what is being done.

    Raises:
        ConfigError, MergeFailedError: the run or its model cannot be published; says why.
        HubError: the Hub refused, failed, or could not be reached.
    """
    publication = prepare_push(
        repo,
        private=private,
        create_pr=create_pr,
        revision=revision,
        commit_message=commit_message,
        license=license,
        overwrite=overwrite,
    )
    return publication.publish(run_in(run), on_step)


def preview_push(
    run: AnyPath | Run,
    repo: str,
    *,
    license: str | None = None,
    on_step: Callable[[str], None] = ignore,
) -> Path:
    """Writes what `push` would upload into the run directory, uploads nothing, and returns the directory.

        for file in preview_push("runs/first", "me/tailored").iterdir():
            print(file.name)

    Raises:
        ConfigError, MergeFailedError: see `push`.
    """
    return prepare_push(repo, license=license).write(run_in(run), on_step)


def reproduce(
    repo: str,
    *,
    revision: str | None = None,
    out: AnyPath | None = None,
    members: Mapping[str, AnyPath] | Iterable[str] = (),
    on_step: Callable[[str], None] = ignore,
) -> Comparison:
    """Builds a published model again from its members, and compares every tensor and the config.

        print(reproduce("me/tailored").equal)

    Args:
        repo: USER/NAME of a repository that `push` has made.
        revision: a branch, tag or commit; default main.
        out: the model directory to make; default a temporary one.
        members: where the members are that are on no Hub: a mapping, or texts NAME=PATH.
        on_step: called with a sentence on what is being done.

    Raises:
        ConfigError: the repository holds no recipe, or a local member is not given.
        HubError: it cannot be downloaded.
    """
    texts = (f"{name}={path}" for name, path in members.items()) if isinstance(members, Mapping) else members
    directories = members_given(texts)
    if out is not None:
        refuse_existing(path_of(out))
    on_step(f"downloading {repo}")
    published = fetch(repo, revision)
    with tempfile.TemporaryDirectory() as scratch:
        rebuilt = path_of(out) if out is not None else Path(scratch) / "model"
        on_step("building it again")
        with locked_around(rebuilt):
            rebuild(published, directories, rebuilt)
        return compare(published, rebuilt)
