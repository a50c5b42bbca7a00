"""Turns the errors of the Hub's client into one sentence that says what to do."""

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
"""The HTTP status in a message of hf-xet."""


PUSH_AGAIN = "push again: what has arrived is not sent again"


@contextmanager
def explained(repo_id: str, *, again: str = PUSH_AGAIN, kept: str = "") -> Iterator[None]:
    """Turns the errors of the client into a HubError.

    Args:
        again: the advice where trying once more may help.
        kept: the local path that still holds what was to be published.

    Raises:
        HubError: the client failed; the message says what to do.
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
    """Returns the sentence for an error; None where it does not come from the client."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no token for the Hub; run  hf auth login  or set HF_TOKEN to one that may write"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE keeps the Hub from being asked; unset it (--dry-run needs no Hub)"
        if isinstance(cause, HFValidationError):
            raise ConfigError(f"{repo_id} is no name of a repository; expected USER/NAME") from None
        if isinstance(cause, HfHubHTTPError):
            response: Any = cause.response
            wait = response.headers.get("retry-after", "")
            message = (cause.server_message or "").splitlines()
            return _status_sentence(int(response.status_code), message, repo_id, again, wait)
        if match := _XET_STATUS.search(str(cause)):
            return _status_sentence(int(match[1]), (), repo_id, again)
    for cause in chain:
        if isinstance(cause, (HTTPError, ConnectionError)):
            return f"the connection to the Hub failed or was lost ({_first_lines(cause)}); {again}"
    for cause in chain:
        if isinstance(cause, (OSError, RuntimeError, ValueError)):
            return f"{repo_id}: {_first_lines(cause)}; {again}"
    return None


def _status_sentence(status: int, message: Sequence[str], repo_id: str, again: str, wait: str = "") -> str:
    """Explains an HTTP status.

    Args:
        message: the lines of the Hub's own message.
        wait: seconds that the Hub asks to wait.
    """
    quoted = f" (it says: {message[0].strip()})" if message else ""
    is_quota = status in (400, 403) and any(word in " ".join(message).lower() for word in _QUOTA)
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
    """Yields an error, and then each error that it was raised from."""
    seen = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _first_lines(error: BaseException) -> str:
    """Returns the first two lines of an error: the cause often stands below a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__
