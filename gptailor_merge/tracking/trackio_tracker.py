"""Records a run in trackio's local database."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from gptailor_merge.tracking.tracker import PROJECT, Numbers, TrackerSettings


class TrackioTracker:
    """Writes into trackio's database, which `trackio show` opens; nothing leaves the machine by default."""

    def __init__(self, directory: Path, name: str, settings: TrackerSettings) -> None:
        import trackio

        self._library = trackio
        # trackio greets on stdout, which belongs to our own output.
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=PROJECT,
                name=name,
                config=dict(settings),
                auto_log_gpu=False,
                auto_log_cpu=False,
                embed=False,
            )
        # trackio would store the name of the user who is logged in to the Hub.
        self._run.config.pop("_Username", None)

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self, results: Numbers) -> None:
        if results:
            self._run.log(dict(results))
        with redirect_stdout(sys.stderr):
            self._library.finish()
