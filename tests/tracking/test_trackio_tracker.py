"""trackio keeps the contract of trackers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor_merge.testing.trackers import Records, Stored, TrackerContract
from gptailor_merge.tracking.tracker import TrackerFactory
from gptailor_merge.tracking.trackio_tracker import TrackioTracker
from tests.tracking.readers import files_below, read_trackio

pytestmark = pytest.mark.filterwarnings("ignore")  # trackio's own


def files_of_trackio(directory: Path) -> bytes:
    from trackio.utils import TRACKIO_DIR

    return files_below(directory, Path(TRACKIO_DIR))


class TestTrackioTracker(TrackerContract):
    @pytest.fixture
    def factory(self) -> TrackerFactory:
        return TrackioTracker

    @pytest.fixture
    def records(self) -> Records:
        return read_trackio

    @pytest.fixture
    def stored(self) -> Stored:
        return files_of_trackio
