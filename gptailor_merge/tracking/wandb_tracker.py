"""Records a run with Weights & Biases."""

from __future__ import annotations

from pathlib import Path

from gptailor_merge.tracking.tracker import PROJECT, Numbers, TrackerSettings


class WandbTracker:
    """Sends to Weights & Biases, or stays offline, as wandb's environment variables say.

    Its files go into the run directory.
    """

    def __init__(self, directory: Path, name: str, settings: TrackerSettings) -> None:
        import wandb

        self._run = wandb.init(project=PROJECT, name=name, config=dict(settings), dir=str(directory))

    def log(self, step: int, numbers: Numbers) -> None:
        self._run.log(dict(numbers), step=step)

    def finish(self, results: Numbers) -> None:
        self._run.summary.update(dict(results))
        self._run.finish()
