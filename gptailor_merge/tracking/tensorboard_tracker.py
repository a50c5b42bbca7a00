"""Records a run as TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

from gptailor_merge.tracking.tracker import Numbers, TrackerSettings


class TensorBoardTracker:
    """Writes into RUN/tensorboard, which `tensorboard --logdir RUN` opens."""

    def __init__(self, directory: Path, name: str, settings: TrackerSettings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run is logged again from its first candidate, which voids what the files hold.
        self._writer = SummaryWriter(directory / "tensorboard", purge_step=0)
        text = "\n".join(f"- {key}: {value}" for key, value in settings.items())
        self._writer.add_text("settings", text, 0)
        self._last_step = 0

    def log(self, step: int, numbers: Numbers) -> None:
        self._last_step = step
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def finish(self, results: Numbers) -> None:
        self.log(self._last_step, results)
        self._writer.close()
