"""The choice of a baseline, and of the model that it prunes, as the command line makes it."""

from __future__ import annotations

from dataclasses import dataclass

from gptailor_merge.models.family import Family
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.baselines.registry import baseline
from gptailor_merge.search.baselines.subject import Subject, subject_of
from gptailor_merge.space.space import Space


@dataclass(frozen=True)
class Choice:
    """A baseline by name, and the one model that it prunes: a member, a merge, or None of these.

    Attributes:
        member: the name of the member that it prunes.
        merge: how the family is merged to the model that it prunes.
    """

    name: str
    member: str | None = None
    merge: str | None = None

    @property
    def method(self) -> Baseline:
        """The baseline itself.

        Raises:
            ConfigError: there is none of this name.
        """
        return baseline(self.name)

    def subject(self, family: Family, space: Space) -> Subject | None:
        """Returns the model that is pruned; see subject.subject_of."""
        return subject_of(family, space, member=self.member, merge=self.merge)

    def __str__(self) -> str:
        if self.member is not None:
            return f"{self.name} of {self.member}"
        return f"{self.name} of the family merged by {self.merge}" if self.merge else self.name
