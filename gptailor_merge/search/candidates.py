"""Candidates: proposed recipes, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Protocol

import yaml

from gptailor_merge.objectives.scores import Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe


class Status(str, Enum):
    """What became of a candidate; see Candidate."""

    SCORED = "scored"
    DROPPED = "dropped"
    GATED = "gated"
    FAILED = "failed"
    DUPLICATE = "duplicate"
    PROBE = "probe"
    REPAIRED = "repaired"

    __str__ = str.__str__


@dataclass(frozen=True)
class Candidate:
    """A proposed recipe together with what became of it.

    A `probe` is scored like any other, but is not of the target size: it tells where to start.
    A `dropped` one left a race: its scores are over the tokens that it was scored on, its loss is
    the estimate that the optimiser was told. A `gated` one is out: it breaks a bound, has no loss,
    and no scores but those of the gates. A `repaired` one has the number of the candidate that it was
    made of.
    """

    number: int
    digest: str
    recipe: str
    status: Status
    loss: float | None
    scores: Scores
    fingerprint: str
    cause: str | None = None
    original: int | None = None
    tokens: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it, or what it is a duplicate of, could not be scored."""
        return self.loss is None and not self.scores

    @cached_property
    def parsed(self) -> Recipe:
        """The recipe as a value."""
        return Recipe.from_mapping(yaml.safe_load(self.recipe))

    @cached_property
    def plan(self) -> Plan:
        """The recipe with nothing left to resolve."""
        return plan(self.parsed)


@dataclass(frozen=True)
class Counts:
    """How many candidates of each kind, and the tokens that went through models, also for repairs."""

    candidates: int
    failures: int
    duplicates: int
    dropped: int
    gated: int
    repaired: int
    tokens: int
    seconds: float


class Log(Protocol):
    """Remembers candidates, also when the process is killed; see runs.journal.Journal."""

    @property
    def file(self) -> Path:
        """Where they are kept, for messages."""

    def candidates(self) -> Iterator[Candidate]:
        """Every candidate in the order of proposal."""

    def record(self, candidates: Sequence[Candidate]) -> None:
        """Write finished candidates, all or none."""

    def best(self) -> Candidate | None:
        """The first with the lowest loss of those that were scored on everything."""

    def counts(self) -> Counts:
        """Totals over all candidates."""
