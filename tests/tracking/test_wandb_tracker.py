"""Weights & Biases keeps the contract of trackers, by a stand-in for its library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptailor_merge.testing.trackers import Records, Stored, TrackerContract
from gptailor_merge.tracking.tracker import TrackerFactory
from gptailor_merge.tracking.wandb_tracker import WandbTracker


class FakeRun:
    """Keeps what wandb would send, and refuses what wandb refuses: steps that go back."""

    def __init__(self, project: str, name: str, config: dict[str, Any], dir: str) -> None:
        self.sent: list[Any] = [project, name, config]
        self.history: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, float] = {}
        self.finished = False
        assert Path(dir).is_dir()

    def log(self, numbers: dict[str, float], step: int) -> None:
        assert not self.finished
        assert not self.history or step > self.history[-1][0]
        self.history.append((step, numbers))

    def finish(self) -> None:
        assert not self.finished
        self.finished = True


class TestWandbTracker(TrackerContract):
    @pytest.fixture(autouse=True)
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
        """The runs that were begun, by the stand-in for the library."""
        begun: list[FakeRun] = []

        def init(**options: Any) -> FakeRun:
            begun.append(FakeRun(**options))
            return begun[-1]

        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
        return begun

    @pytest.fixture
    def factory(self) -> TrackerFactory:
        return WandbTracker

    @pytest.fixture
    def records(self, begun: list[FakeRun]) -> Records:
        def read(directory: Path) -> dict[str, list[tuple[int, float]]]:
            (run,) = begun
            assert run.finished
            records: dict[str, list[tuple[int, float]]] = {}
            for step, numbers in run.history:
                for key, value in numbers.items():
                    records.setdefault(key, []).append((step, value))
            return {**records, **{key: [(-1, value)] for key, value in run.summary.items()}}

        return read

    @pytest.fixture
    def stored(self, begun: list[FakeRun]) -> Stored:
        def everything(directory: Path) -> bytes:
            return json.dumps([[run.sent, run.history, run.summary] for run in begun]).encode()

        return everything
