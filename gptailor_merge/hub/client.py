"""Uploads a directory to a repository on the Hub, by the Hub's own client."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from gptailor_merge import __version__
from gptailor_merge.errors import ConfigError, FamilyError, HubError
from gptailor_merge.hub.bundle import PICTURES
from gptailor_merge.hub.client_errors import explained
from gptailor_merge.hub.release import ADAPTER, RECORD
from gptailor_merge.models.chosen_weights import INDEX
from gptailor_merge.models.stranger_files import read_object
from gptailor_merge.runs.redaction import WEIGHTS

ATTRIBUTES = ".gitattributes"
"""A file that the Hub itself puts into every repository."""


PULL_REQUEST = "refs/pr/"


STALE = [WEIGHTS, INDEX, f"{PICTURES}/*", f"{ADAPTER}/*"]
"""Files of an earlier push that a later push of the same run may lack."""


@dataclass(frozen=True)
class Destination:
    """The repository to publish in, and how to publish.

    Attributes:
        revision: a branch, made where it is missing, or refs/pr/N; the default is main.
        overwrite: replace what another run or person has put there.
        message: the commit message; None for one that names the recipe.
    """

    repo_id: str
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    overwrite: bool = False
    message: str | None = None

    def __post_init__(self) -> None:
        check_name(self.repo_id)
        if self.create_pr and self.revision is not None:
            raise ConfigError("--create-pr opens a pull request against main; leave out --revision")

    @property
    def proposes(self) -> bool:
        """True where the push goes to a pull request, which overwrites nothing."""
        return self.create_pr or (self.revision or "").startswith(PULL_REQUEST)


@dataclass(frozen=True)
class RepositoryState:
    """A repository as it was when the Hub was asked.

    Attributes:
        exists: whether there is a repository; it may still lack the revision.
        head: the commit of the revision; None where there is no revision.
        files: the files of the revision, without the Hub's own.
        is_ours: whether an earlier push of the same run made them.
    """

    exists: bool
    head: str | None = None
    files: tuple[str, ...] = ()
    is_ours: bool = False


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        url: the address of the commit, or of the pull request.
        changed: whether a commit was made; none is made where the Hub has all files already.
        tag: the tag of the commit; None for a pull request, and where an earlier commit has the tag.
    """

    url: str
    changed: bool
    tag: str | None


def check_name(repo_id: str) -> None:
    """Raises a ConfigError where a text is not the name of a repository with its owner."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise ConfigError(f"expected a repository's name, USER/NAME, found {repo_id!r}")


class Hub:
    """A client of the Hub, for one push."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._api = HfApi(library_name="gptailor-merge", library_version=__version__)

    def check(self, search: str, licence: str) -> RepositoryState:
        """Checks, before there is anything to push, that a push will be accepted.

        Args:
            search: the digest that tells the run from others, see release.search_digest.
            licence: the key of the model's licence.

        Raises:
            ConfigError: the name is taken, or the Hub does not know the licence.
            HubError: the token is missing or may not write, or the Hub cannot be reached.
        """
        destination = self._destination
        with explained(destination.repo_id):
            _refuse_without_right(self._api.whoami(), destination)
            state = self._look(search)
            # Older clients lack this question; what the token tells of itself must do.
            if (
                state.exists
                and not destination.proposes
                and "write" in signature(HfApi.auth_check).parameters
            ):
                self._api.auth_check(destination.repo_id, write=True)
            _check_licence(licence)
        return state

    def push(self, directory: Path, state: RepositoryState, *, tag: str, message: str) -> Pushed:
        """Uploads a directory; files that the Hub has already are not sent again.

        Args:
            state: the answer of `check`; where the repository has changed since, the push is refused.
            tag: the tag of the new commit.
            message: the commit message, where the destination has none.

        Raises:
            ConfigError, HubError: the Hub refused or failed, or the connection was lost.
        """
        destination, api = self._destination, self._api
        with explained(destination.repo_id, kept=str(directory)):
            head = state.head or self._make(state)
            commit = api.upload_folder(
                repo_id=destination.repo_id,
                folder_path=directory,
                commit_message=destination.message or message,
                revision=destination.revision,
                create_pr=destination.create_pr,
                # Refuses to overwrite a change that someone else has made since.
                parent_commit=None if destination.create_pr else head,
                delete_patterns=_stale(state),
            )
            if destination.proposes:
                return Pushed(str(commit.pr_url or commit.commit_url), commit.oid != head, None)
            tagged = self._tag(tag, commit.oid)
        return Pushed(str(commit.commit_url), commit.oid != head, tag if tagged else None)

    def _tag(self, tag: str, commit: str) -> bool:
        """Tags a commit, unless an earlier push of the same recipe has the tag: tags do not move."""
        try:
            self._api.create_tag(self._destination.repo_id, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return False
        return True

    def _look(self, search: str) -> RepositoryState:
        """Asks for the state of the repository.

        Raises:
            ConfigError: someone else filled it and it is not to be overwritten, or it is public and is to be
                private.
        """
        destination = self._destination
        try:
            info = self._api.model_info(destination.repo_id, revision=destination.revision)
        except RevisionNotFoundError:
            if destination.proposes:
                raise
            return RepositoryState(exists=True)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return RepositoryState(exists=False)
        if destination.private and info.private is False:
            text = "exists and is public; make it private in its settings, or leave out --private"
            raise ConfigError(f"{destination.repo_id} {text}")
        names = (file.rfilename for file in info.siblings or ())
        files = tuple(name for name in names if name != ATTRIBUTES)
        is_ours = RECORD in files and self._run_of(str(info.sha)) == search
        if files and not (is_ours or destination.overwrite or destination.proposes):
            first_files = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
            raise ConfigError(
                f"{destination.repo_id} was filled by another run or person ({first_files}); choose another "
                "name or --revision, propose it with --create-pr, or replace what is there with --overwrite"
            )
        return RepositoryState(True, info.sha, files, is_ours)

    def _run_of(self, commit: str) -> str | None:
        """Returns the search digest in the record that a repository holds; None where there is none."""
        with tempfile.TemporaryDirectory() as scratch:
            file = self._api.hf_hub_download(
                self._destination.repo_id, RECORD, revision=commit, local_dir=scratch
            )
            try:
                digest = read_object(Path(file))["search"]
            except (FamilyError, KeyError):
                return None
        return digest if isinstance(digest, str) else None

    def _make(self, state: RepositoryState) -> str | None:
        """Makes the repository or the branch, which nobody may have made meanwhile; returns its commit."""
        destination, api = self._destination, self._api
        if not state.exists:
            api.create_repo(destination.repo_id, private=True if destination.private else None)
        if destination.revision is not None and not destination.proposes:
            api.create_branch(destination.repo_id, branch=destination.revision)
        return api.model_info(destination.repo_id, revision=destination.revision).sha


def _stale(state: RepositoryState) -> list[str] | str | None:
    """Returns patterns of files to delete that the directory lacks: a model must not be a mixture of two."""
    if state.is_ours:
        return STALE
    begins_as_main = state.exists and state.head is None
    return "*" if state.files or begins_as_main else None


def _refuse_without_right(who: Mapping[str, Any], destination: Destination) -> None:
    """Checks the rights of the token, by the Hub's answer about it and the organisations of its owner.

    Raises:
        HubError: the token may not write to the destination.
    """
    role = (who.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            "the token may only read; make one with write permission at "
            "https://huggingface.co/settings/tokens and set HF_TOKEN to it, or run  hf auth login"
        )
    if destination.proposes:
        return
    namespace = destination.repo_id.split("/")[0].lower()
    roles = {str(org["name"]).lower(): org.get("roleInOrg") for org in who.get("orgs", ())}
    if namespace != str(who["name"]).lower() and roles.get(namespace, "read") == "read":
        raise HubError(
            f"the token may not write to {destination.repo_id.split('/')[0]}: it is neither its owner nor an "
            "organisation that its owner may write to; choose another name, or --create-pr"
        )


def _check_licence(key: str) -> None:
    """Asks the Hub whether it knows a licence.

    Raises:
        ConfigError: the Hub does not know it.
    """
    try:
        ModelCard(f"---\nlicense: {key}\n---\n").validate()
    except ValueError as error:
        raise ConfigError(f"--license: the Hub does not take {key!r}: {_hub_message(str(error))}") from None


def _hub_message(text: str) -> str:
    """Returns the message in an answer of the Hub, which may be JSON or plain text."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text.strip()
    messages = [str(error.get("message", error)) for error in answer.get("errors", [])]
    return "; ".join(messages) or str(answer.get("error", answer))
