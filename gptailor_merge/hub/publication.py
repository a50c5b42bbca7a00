"""From a run to the Hub: what is checked before a search, and what is published after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.config import SearchConfig
from gptailor_merge.hub.bundle import bundle, check_model
from gptailor_merge.hub.client import Destination, Hub, Pushed
from gptailor_merge.hub.parents import licence_of, parents_of
from gptailor_merge.hub.release import Release, members_of, release_of, search_digest
from gptailor_merge.runs.directory import RunDirectory


def ignore(step: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Publication:
    """A run's way to the Hub.

    Attributes:
        licence: chosen by the user; else the members' own.
    """

    target: Destination
    licence: str | None = None

    def check(self, settings: SearchConfig) -> None:
        """Whether the result of a search could be published: access, name, licence.

        Raises:
            ConfigError, HubError: it could not; says what to do.
        """
        family = parents_of(members_of(settings))
        licence = licence_of(family, self.licence)
        Hub(self.target).check(search_digest(settings, family), licence.key)

    def write(self, run: RunDirectory, on_step: Callable[[str], None] = ignore) -> Path:
        """Write what is to be published into the run directory; its directory there."""
        return self._write(release_of(run, self.licence), on_step)

    def publish(self, run: RunDirectory, on_step: Callable[[str], None] = ignore) -> Pushed:
        """Write and upload it; access is checked first, and the model before the first byte leaves.

        Raises:
            ConfigError, MergeFailedError, HubError: what was wrong; what was written stays.
        """
        release = release_of(run, self.licence)
        hub = Hub(self.target)
        on_step("asking the Hub")
        seen = hub.check(release.search_digest, release.licence.key)
        directory = self._write(release, on_step)
        on_step("uploading")
        message = f"{len(release.plan.slots)} layers, recipe {release.digest}"
        return hub.push(directory, seen, tag=release.digest, message=message)

    def _write(self, release: Release, on_step: Callable[[str], None]) -> Path:
        on_step("checking the model")
        check_model(release.run)
        on_step("writing the card")
        return bundle(release, self.target.repo_id)
