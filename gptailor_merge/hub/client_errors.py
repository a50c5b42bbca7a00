"""What the Hub's client raises, as one sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import huggingface_hub.errors
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from gptailor_merge.errors import ConfigError, HubError, TailorError

# The base of what httpx raises, or httpx2, which newer versions of the client use.
HTTPError: type[Exception] = huggingface_hub.errors.HTTPError  # type: ignore[attr-defined]


_QUOTA = ("quota", "storage limit", "storage is full", "exceeded")


_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
"""In what hf-xet raises."""


PUSH_AGAIN = "push again: what has arrived is not sent again"


@contextmanager
def explained(repo_id: str, *, again: str = PUSH_AGAIN, kept: str = "") -> Iterator[None]:
    """Errors of the client become a HubError.

    Args:
        again: what to do where trying once more may help.
        kept: where what is to be published is on this machine.

    Raises:
        HubError: says what to do.
    """
    try:
        yield
    except TailorError:
        raise
    except Exception as error:
        sentence = _sentence(error, repo_id, again)
        if sentence is None:
            raise
        raise HubError(f"{sentence}{f'; nothing is lost, {kept} holds it' if kept else ''}") from error


def _sentence(error: Exception, repo_id: str, again: str) -> str | None:
    """None for what does not come from the client."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, LocalTokenNotFoundError):
            return "there is no token for the Hub; run  hf auth login  or set HF_TOKEN to one that may write"
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE keeps the Hub from being asked; unset it (--dry-run needs no Hub)"
        if isinstance(one, HFValidationError):
            raise ConfigError(f"{repo_id} is no name of a repository; expected USER/NAME") from None
        if isinstance(one, HfHubHTTPError):
            response: Any = one.response
            wait = response.headers.get("retry-after", "")
            said = (one.server_message or "").splitlines()
            return _of_status(int(response.status_code), said, repo_id, again, wait)
        if match := _XET_STATUS.search(str(one)):
            return _of_status(int(match[1]), (), repo_id, again)
    for one in chain:
        if isinstance(one, (HTTPError, ConnectionError)):
            return f"the connection to the Hub failed or was lost ({_beginning(one)}); {again}"
    for one in chain:
        if isinstance(one, (OSError, RuntimeError, ValueError)):
            return f"{repo_id}: {_beginning(one)}; {again}"
    return None


def _of_status(status: int, said: Sequence[str], repo_id: str, again: str, wait: str = "") -> str:
    """What an HTTP status comes to.

    Args:
        said: lines of the Hub's own message.
        wait: seconds that it asks to wait.
    """
    quoted = f" (it says: {said[0].strip()})" if said else ""
    is_quota = status in (400, 403) and any(word in " ".join(said).lower() for word in _QUOTA)
    if is_quota or status in (402, 413, 507):
        return f"the Hub has no room for {repo_id}{quoted}; free some or take a larger plan, and push again"
    if status == 401:
        return (
            f"the Hub does not accept the token for {repo_id}; run  hf auth login  or set HF_TOKEN to one "
            "that may write, and check the name"
        )
    if status == 403:
        return (
            f"the token may not write to {repo_id}{quoted}; take one with write permission for "
            f"{repo_id.split('/')[0]}, or a name of your own, or --create-pr"
        )
    if status == 404:
        return f"the Hub has no {repo_id}, or no such revision of it, or hides it from this token{quoted}"
    if status in (409, 412):
        return f"{repo_id} was changed by someone else meanwhile{quoted}; look at it and push again"
    if status == 429:
        after = f"in {wait} seconds" if wait.isdigit() else "in a few minutes"
        return f"the Hub has had too many requests from here; try again {after}: {again}"
    if status >= 500:
        return f"the Hub failed with status {status}{quoted}; try again later: {again}"
    return f"the Hub refused {repo_id} with status {status}{quoted}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    seen = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _beginning(error: BaseException) -> str:
    """Its first lines: a heading often stands before what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__
