"""A directory becomes a repository on the Hub, by the Hub's own client."""

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
from gptailor_merge.errors import ConfigError, HubError
from gptailor_merge.hub.bundle import PICTURES, WEIGHTS
from gptailor_merge.hub.client_errors import explained
from gptailor_merge.hub.release import RECORD
from gptailor_merge.models.checkpoint import INDEX

ATTRIBUTES = ".gitattributes"
"""The Hub's own file in every repository."""


PULL_REQUEST = "refs/pr/"


STALE = [WEIGHTS, INDEX, f"{PICTURES}/*"]
"""Files of an earlier push of a run that a later one may not have."""


@dataclass(frozen=True)
class Destination:
    """Where to publish, and how.

    Attributes:
        revision: a branch, which is made if it is not there, or refs/pr/N; default main.
        overwrite: replace what another run or person has put there.
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
        """Whether it goes to a pull request, which overwrites nothing."""
        return self.create_pr or (self.revision or "").startswith(PULL_REQUEST)


@dataclass(frozen=True)
class Seen:
    """A repository as it was when it was looked at.

    Attributes:
        exists: whether there is a repository; it may still lack the revision.
        head: the commit of the revision, or None where there is none.
        files: in the revision, without the Hub's own.
        is_ours: whether they are an earlier push of the same run.
    """

    exists: bool
    head: str | None = None
    files: tuple[str, ...] = ()
    is_ours: bool = False


@dataclass(frozen=True)
class Pushed:
    """What became of a push.

    Attributes:
        url: of the commit, or of the pull request.
        changed: whether a commit was made; none is where all files are there already.
        tag: of the commit; None for a pull request, and where an earlier commit has it.
    """

    url: str
    changed: bool
    tag: str | None


def check_name(repo_id: str) -> None:
    """Raise a ConfigError where a text is no repository's name, with its owner."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise ConfigError(f"expected a repository's name, USER/NAME, found {repo_id!r}")


class Hub:
    """The Hub, for one push."""

    def __init__(self, target: Destination) -> None:
        self._target = target
        self._api = HfApi(library_name="gptailor-merge", library_version=__version__)

    def check(self, search: str, licence: str) -> Seen:
        """Everything that can be known of a push before there is anything to push.

        Args:
            search: tells the run from others, see release.search_digest.
            licence: of the model.

        Raises:
            ConfigError: the name is taken, or the Hub does not know the licence.
            HubError: no token, no right, no connection.
        """
        target = self._target
        with explained(target.repo_id):
            _refuse_without_right(self._api.whoami(), target)
            seen = self._look(search)
            # Older clients cannot ask it; what the token itself tells is known then.
            if seen.exists and not target.proposes and "write" in signature(HfApi.auth_check).parameters:
                self._api.auth_check(target.repo_id, write=True)
            _check_licence(licence)
        return seen

    def push(self, directory: Path, seen: Seen, *, tag: str, message: str) -> Pushed:
        """Upload a directory, unless all of it is there already.

        Args:
            seen: what `check` has found; a change since is refused.
            tag: of the commit.
            message: of the commit, where the target has none.

        Raises:
            ConfigError, HubError: the Hub refused or failed, or the connection was lost.
        """
        target, api = self._target, self._api
        with explained(target.repo_id, kept=str(directory)):
            head = seen.head or self._make(seen)
            commit = api.upload_folder(
                repo_id=target.repo_id,
                folder_path=directory,
                commit_message=target.message or message,
                revision=target.revision,
                create_pr=target.create_pr,
                # Else a change by someone else since would be overwritten.
                parent_commit=None if target.create_pr else head,
                delete_patterns=_stale(seen),
            )
            if target.proposes:
                return Pushed(str(commit.pr_url or commit.commit_url), commit.oid != head, None)
            tagged = self._tag(tag, commit.oid)
        return Pushed(str(commit.commit_url), commit.oid != head, tag if tagged else None)

    def _tag(self, tag: str, commit: str) -> bool:
        """Tag a commit, unless an earlier push of the same recipe has the tag: tags do not move."""
        try:
            self._api.create_tag(self._target.repo_id, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return False
        return True

    def _look(self, search: str) -> Seen:
        """What is there.

        Raises:
            ConfigError: it is another's, and not to be overwritten; or public, and not to be.
        """
        target = self._target
        try:
            info = self._api.model_info(target.repo_id, revision=target.revision)
        except RevisionNotFoundError:
            if target.proposes:
                raise
            return Seen(exists=True)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return Seen(exists=False)
        if target.private and info.private is False:
            text = "exists and is public; make it private in its settings, or leave out --private"
            raise ConfigError(f"{target.repo_id} {text}")
        names = (file.rfilename for file in info.siblings or ())
        files = tuple(name for name in names if name != ATTRIBUTES)
        is_ours = RECORD in files and self._run_of(str(info.sha)) == search
        if files and not (is_ours or target.overwrite or target.proposes):
            shown = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
            raise ConfigError(
                f"{target.repo_id} was filled by another run or person ({shown}); choose another name or "
                "--revision, propose it with --create-pr, or replace what is there with --overwrite"
            )
        return Seen(True, info.sha, files, is_ours)

    def _run_of(self, commit: str) -> str | None:
        """Which run's record a repository holds."""
        with tempfile.TemporaryDirectory() as scratch:
            file = self._api.hf_hub_download(self._target.repo_id, RECORD, revision=commit, local_dir=scratch)
            try:
                found = json.loads(Path(file).read_text(encoding="utf-8"))["search"]
            except (ValueError, KeyError, TypeError):
                return None
        return found if isinstance(found, str) else None

    def _make(self, seen: Seen) -> str | None:
        """Make the repository or the branch, which nobody else may have made meanwhile; its commit."""
        target, api = self._target, self._api
        if not seen.exists:
            api.create_repo(target.repo_id, private=True if target.private else None)
        if target.revision is not None and not target.proposes:
            api.create_branch(target.repo_id, branch=target.revision)
        return api.model_info(target.repo_id, revision=target.revision).sha


def _stale(seen: Seen) -> list[str] | str | None:
    """Which files that are there and not in the directory are deleted: a model is no mixture of two."""
    if seen.is_ours:
        return STALE
    begins_as_main = seen.exists and seen.head is None
    return "*" if seen.files or begins_as_main else None


def _refuse_without_right(who: Mapping[str, Any], target: Destination) -> None:
    """By what the Hub says of the token and of its owner's organisations.

    Raises:
        HubError: it may not write there.
    """
    role = (who.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            "the token may only read; make one with write permission at "
            "https://huggingface.co/settings/tokens and set HF_TOKEN to it, or run  hf auth login"
        )
    if target.proposes:
        return
    namespace = target.repo_id.split("/")[0].lower()
    roles = {str(one["name"]).lower(): one.get("roleInOrg") for one in who.get("orgs", ())}
    if namespace != str(who["name"]).lower() and roles.get(namespace, "read") == "read":
        raise HubError(
            f"the token may not write to {target.repo_id.split('/')[0]}: it is neither its owner nor an "
            "organisation that its owner may write to; choose another name, or --create-pr"
        )


def _check_licence(key: str) -> None:
    """Ask the Hub whether it knows a licence.

    Raises:
        ConfigError: it does not.
    """
    try:
        ModelCard(f"---\nlicense: {key}\n---\n").validate()
    except ValueError as error:
        raise ConfigError(f"--license: the Hub does not take {key!r}: {_said(str(error))}") from None


def _said(text: str) -> str:
    """What the Hub says in its answer, which is JSON or plain."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text.strip()
    found = [str(one.get("message", one)) for one in answer.get("errors", [])]
    return "; ".join(found) or str(answer.get("error", answer))
