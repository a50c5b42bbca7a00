"""The way of a run to the Hub: what is checked before a search, and what is published after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import InputError
from gptailor_merge.healing.facts import facts_in
from gptailor_merge.hub.bundle import bundle, check_model
from gptailor_merge.hub.client import Destination, Hub, Pushed
from gptailor_merge.hub.licences import check_licence
from gptailor_merge.hub.parents import licence_of, parents_of
from gptailor_merge.hub.release import Release, release_of, search_digest
from gptailor_merge.runs.lock import locked
from gptailor_merge.runs.record import members_of
from gptailor_merge.runs.run import Run


def ignore(step: str) -> None:
    """Tells nobody of a step."""


@dataclass(frozen=True)
class Publication:
    """Publishes runs at one place on the Hub.

    Attributes:
        licence: the licence that the user chose; by default the one that all members state.
    """

    target: Destination
    licence: str | None = None

    def check(self, settings: SearchConfig) -> None:
        """Checks access, name and licence before a search, so that its result can be published.

        Raises:
            ConfigError, HubError: it could not be; the message says what to do.
        """
        family = parents_of(members_of(settings))
        licence = licence_of(family, self.licence)
        Hub(self.target).check(search_digest(settings, family), licence.key)

    def write(self, run: Run, on_step: Callable[[str], None] = ignore) -> Path:
        """Writes what is to be published into the run directory, and returns where it is.

        Raises:
            InputError, ConfigError, MergeFailedError: the run or its model is not fit to be published, or
                the Hub has no such licence.
        """
        if self.licence is not None:
            check_licence(self.licence)  # the Hub, which knows its list better, is not asked
        _refuse_healed(run)
        with locked(run.path):
            return self._write(release_of(run.record(), self.licence), on_step)

    def publish(self, run: Run, on_step: Callable[[str], None] = ignore) -> Pushed:
        """Writes and uploads it. Access is checked first, and the model before the first byte leaves.

        Raises:
            InputError, ConfigError, MergeFailedError, HubError: what was wrong; what was written stays.
        """
        _refuse_healed(run)
        with locked(run.path):
            release = release_of(run.record(), self.licence)
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


def _refuse_healed(run: Run) -> None:
    """Refuses the directory that `gptailor heal` has made, or the model in it, for it is no run.

    Raises:
        InputError: says why it cannot be pushed, and what can be done.
    """
    for place in (run, Run(run.path.absolute().parent)):
        if place.config.is_file() or place.journal.is_file():
            return
        facts = facts_in(place.path)
        if facts is None:
            continue
        if facts.method == "full":
            message = "all weights of this model were trained, so that no recipe rebuilds it; expected a run"
            raise InputError(f"{message}; `hf upload` publishes the model as it is", file=run.path)
        message = "a healed recipe and no run; expected the directory of a search"
        raise InputError(f"{message}, which heals its best recipe with `heal` in its config", file=run.path)
