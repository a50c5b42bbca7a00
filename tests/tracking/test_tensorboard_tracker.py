"""TensorBoard keeps the contract of trackers."""

from __future__ import annotations

import pytest

from gptailor_merge.testing.trackers import Records, Stored, TrackerContract
from gptailor_merge.tracking.tensorboard_tracker import TensorBoardTracker
from gptailor_merge.tracking.tracker import TrackerFactory
from tests.tracking.readers import files_below, read_tensorboard

pytestmark = pytest.mark.filterwarnings("ignore")  # tensorboard's own


class TestTensorBoardTracker(TrackerContract):
    @pytest.fixture
    def factory(self) -> TrackerFactory:
        return TensorBoardTracker

    @pytest.fixture
    def records(self) -> Records:
        return read_tensorboard

    @pytest.fixture
    def stored(self) -> Stored:
        return files_below
