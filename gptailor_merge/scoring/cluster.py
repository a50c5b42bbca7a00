"""The protocol by which workers elsewhere are started and spoken to; crew.py decides what they do."""

from __future__ import annotations

import io
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch

from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.workplace import ScoredSection


class WorkerLostError(Exception):
    """A worker is gone; its message is a sentence.

    Attributes:
        with_its_node: True if its whole machine is, so that no plan is to blame.
    """

    def __init__(self, message: str, *, with_its_node: bool = False) -> None:
        super().__init__(message)
        self.with_its_node = with_its_node


class Cluster(Protocol):
    """Starts workers and carries messages to them; Ray's actors are such workers.

    A ticket stands for an answer to come.
    """

    def wanted(self) -> int:
        """Returns how many workers there should be now, at least 1."""

    def start(self) -> tuple[Hashable, Hashable]:
        """Begins to start a worker; returns it, and the ticket that it answers when it can score."""

    def score(
        self, worker: Hashable, section: ScoredSection, rungs: range, plans: Sequence[Plan]
    ) -> Hashable:
        """Lets a worker score plans on some rungs and returns the ticket for a RungResult of each."""

    def share(self, content: bytes) -> Any:
        """Makes bytes available to all workers, and returns what stands for them."""

    def fit(self, worker: Hashable, fitting: Any, plans: Sequence[Plan]) -> Hashable:
        """Lets a worker refine plans and returns the ticket for a SentFit of each.

        Args:
            fitting: stands for the bytes of a Fitting, see `share`.
        """

    def first_answered(self, tickets: Sequence[Hashable], seconds: float) -> Hashable | None:
        """Waits for an answer to one of any number of tickets; returns its ticket, or None if none came."""

    def answer(self, ticket: Hashable) -> Any:
        """Returns an answer that has come.

        Raises:
            WorkerLostError: the worker is gone.
        """

    def stop(self, worker: Hashable) -> None:
        """Ends a worker, also one that hangs or is gone."""


def sendable(content: object, done: str) -> bytes:
    """Returns what workers need as torch.save writes it.

    Args:
        done: says what is done with it, as a participle.

    Raises:
        ConfigError: something cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
    except Exception as error:  # what another package measures may raise anything
        raise ConfigError(
            f"what is {done} cannot be sent to workers: {first_line(error)}; expected objectives that can "
            "be pickled, or no --workers"
        ) from None
    return buffer.getvalue()


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
