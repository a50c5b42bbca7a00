"""Candidates: proposed plans, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Protocol

from gptailor_merge.documents import parse_yaml
from gptailor_merge.errors import RecipeError
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.edits import with_whole_paths
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe


class Status(str, Enum):
    """Names what became of a candidate; see Candidate."""

    SCORED = "scored"
    DROPPED = "dropped"
    GATED = "gated"
    FAILED = "failed"
    DUPLICATE = "duplicate"
    PROBE = "probe"
    REPAIRED = "repaired"
    TUNED = "tuned"
    HEALED = "healed"

    __str__ = str.__str__


REFINED = (Status.REPAIRED, Status.TUNED, Status.HEALED)
"""Candidates that were made better when the search was over; they have the number of their original."""


@dataclass(frozen=True)
class Candidate:
    """A proposed plan together with what became of it.

    A `probe` is scored like any other candidate, but is not of the target size: it tells where to start.
    A `dropped` one left a race: its scores are over the tokens that it was scored on, or estimates where a
    front is sought, its loss is the estimate that the optimiser was told. A `gated` one breaks a bound: it
    has no loss, and no scores but those of the gates. A `repaired`, `tuned` or `healed` one has the number of
    the candidate that it was made from.

    Attributes:
        recipe: the plan as a recipe in YAML, as the journal keeps it.
        cause: why it failed, or which bound it breaks.
        original: the number of the candidate that it is a duplicate of.
        tokens: tokens that it was scored on.
        directory: the one that the recipe names its maps from; None where it names none.
        resolved: the plan, where the recipe was written from it; else `plan` reads the recipe once.
        replayed: True where a search that goes on took it from the journal.
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
    directory: Path | None = field(default=None, compare=False, repr=False)
    resolved: Plan | None = field(default=None, compare=False, repr=False)
    replayed: bool = field(default=False, compare=False, repr=False)

    @property
    def failed(self) -> bool:
        """True where it, or the candidate that it is a duplicate of, could not be scored."""
        return self.loss is None and not self.scores

    @cached_property
    def parsed(self) -> Recipe:
        """The recipe as a value, with maps that are named by whole paths.

        Raises:
            RecipeError: the journal holds no recipe here.
        """
        recipe = self._as_stored()
        return recipe if self.directory is None else with_whole_paths(recipe, self.directory)

    @property
    def text(self) -> str:
        """The recipe as people read it."""
        return self._as_stored().to_yaml()

    def _as_stored(self) -> Recipe:
        return Recipe.from_mapping(parse_yaml(self.recipe, RecipeError))

    @cached_property
    def plan(self) -> Plan:
        """The recipe with nothing left to resolve."""
        return plan(self.parsed) if self.resolved is None else self.resolved


@dataclass(frozen=True)
class Counts:
    """Numbers of candidates by status; tokens and seconds are those of what was refined, too."""

    candidates: int
    failures: int
    duplicates: int
    dropped: int
    gated: int
    repaired: int
    tuned: int
    healed: int
    tokens: int
    seconds: float


class Log(Protocol):
    """Remembers candidates, also when the process is killed; see runs.journal.Journal."""

    @property
    def file(self) -> Path:
        """The file that keeps them, for messages."""

    def candidates(self) -> Iterator[Candidate]:
        """Yields every candidate in the order of proposal."""

    def candidate(self, number: int) -> Candidate | None:
        """Returns the candidate of a number; None where there is none."""

    def record(self, candidates: Sequence[Candidate]) -> None:
        """Writes finished candidates, all or none."""

    def best(self) -> Candidate | None:
        """Returns the first with the lowest loss of those that were scored on everything."""

    def counts(self) -> Counts:
        """Returns totals over all candidates."""
