"""Reads back what trackers recorded of a run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

Records = dict[str, list[tuple[int, float]]]


def read_tensorboard(directory: Path) -> Records:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_trackio(directory: Path) -> Records:
    from trackio.utils import TRACKIO_DIR

    records: Records = {}
    database = sqlite3.connect(Path(TRACKIO_DIR) / "gptailor.db")
    query = "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id"
    for step, text in database.execute(query, (directory.name,)):
        for key, value in json.loads(text).items():
            if isinstance(value, (int, float)):
                records.setdefault(key, []).append((step, value))
    database.close()
    return records


READERS: dict[str, Callable[[Path], Records]] = {
    "tensorboard": read_tensorboard,
    "trackio": read_trackio,
}
"""Reader of each tracker whose library the tests have; one more tracker is one more entry."""


def files_below(*roots: Path) -> bytes:
    """Returns the contents of all files below some directories, one after the other."""
    return b"".join(file.read_bytes() for root in roots for file in sorted(root.rglob("*")) if file.is_file())
