"""A run: a directory that a search fills, and typed reading of it."""

from __future__ import annotations

from pathlib import Path

from gptailor_merge.errors import InputError
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.record import Record, read
from gptailor_merge.runs.summary import Summary, summarize


class Run(Directory):
    """A directory that a search fills. Read it once with `record`: all views are made from the Record."""

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Returns the run in a directory, which may still be going on.

        Raises:
            InputError: the directory holds no run.
        """
        run = cls(Path(path))
        if not (run.config.is_file() or run.journal.is_file()):
            raise InputError("no such run; expected a run directory of gptailor-evolve", file=run.path)
        return run

    def record(self) -> Record:
        """Reads the config and the journal, also while a search writes them.

        Raises:
            InputError: the directory holds no run.
            ConfigError: the config cannot be read by this version.
            SearchError: the journal cannot be read by this version.
        """
        return read(self)

    def summary(self, pick: str | None = None) -> Summary:
        """Returns what `gptailor show` prints.

        Args:
            pick: a rule that chooses a recipe of the front, see search.front.pick; by default the
                recipe that the run chose.

        Raises:
            InputError, ConfigError, SearchError: see `record` and summary.summarize.
        """
        return summarize(self.record(), pick)
