"""The layout of a run directory: which file holds what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptailor_merge.files import STAGED, sweep


@dataclass(frozen=True)
class Directory:
    """A directory that is, or is to become, a run.

    >>> Directory(Path("demo")).best.as_posix()
    'demo/best.yml'
    """

    path: Path

    @property
    def config(self) -> Path:
        """The search config with everything resolved."""
        return self.path / "config.yml"

    @property
    def journal(self) -> Path:
        """The SQLite file with every candidate."""
        return self.path / "journal.db"

    @property
    def best(self) -> Path:
        """The best recipe."""
        return self.path / "best.yml"

    @property
    def pareto(self) -> Path:
        """The directory with the recipes of the front."""
        return self.path / "pareto"

    @property
    def repairs(self) -> Path:
        """The directory with the maps of repaired recipes."""
        return self.path / "repair"

    @property
    def model(self) -> Path:
        """The written model."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    @property
    def hub(self) -> Path:
        """The directory with what is published of the run."""
        return self.path / "hub"

    def sweep(self) -> None:
        """Removes what killed processes have left half written. Call it with the lock held."""
        for path in (self.config, self.best, self.report, self.model, self.hub):
            sweep(path)
        if self.pareto.is_dir():
            for recipe in self.pareto.glob(f".*.{STAGED}-*"):
                recipe.unlink(missing_ok=True)
