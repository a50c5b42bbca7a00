"""Opens a run and reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.errors import InputError
from gptailor_merge.runs import summary as summaries
from gptailor_merge.runs.directory import RunDirectory
from gptailor_merge.runs.record import Record, record
from gptailor_merge.runs.summary import Summary


@dataclass(frozen=True)
class Run(RunDirectory):
    """The directory that a search fills, and what it holds as typed values."""

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Returns the run in a directory.

        Raises:
            InputError: the directory holds no run.
        """
        run = cls(Path(path))
        if not run.journal.is_file():
            raise InputError("no such journal; expected a run directory of gptailor-evolve", file=run.journal)
        return run

    def summary(self, pick: str | None = None) -> Summary:
        """Returns what `gptailor show` prints.

        Args:
            pick: shows another recipe of the front: knee, best:OBJECTIVE or layers=N.
        """
        return summaries.summarize(self, pick)

    def record(self) -> Record:
        """Returns everything that the run holds, read once; the search may still be going on."""
        return record(self)
