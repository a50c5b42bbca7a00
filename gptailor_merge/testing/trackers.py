"""Tests that every tracker must pass.

A package that offers a tracker inherits `TrackerContract` in its tests and supplies three fixtures:

    class TestMyTracker(TrackerContract):
        @pytest.fixture
        def factory(self): return MyTracker

        @pytest.fixture
        def records(self): return lambda directory: read_back(directory)

        @pytest.fixture
        def stored(self): return lambda directory: all_bytes_that_were_sent(directory)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from gptailor_merge.tracking.tracker import TrackerFactory, TrackerSettings

Records = Callable[[Path], Mapping[str, Sequence[tuple[int, float]]]]
"""Reads back a run: directory -> key -> (step, value) in the order in which they were logged."""


Stored = Callable[[Path], bytes]
"""Returns everything that the tracker of a run sent or wrote: directory -> bytes."""


SETTINGS: TrackerSettings = {"optimizer": "default", "budget": 6, "target/layers": "4", "seed": 5}


class TrackerContract:
    """Tests what a search relies on."""

    @pytest.fixture
    def factory(self) -> TrackerFactory:
        """Returns the class or function that makes the tracker."""
        raise NotImplementedError("a contract suite needs the fixture `factory`")

    @pytest.fixture
    def records(self) -> Records:
        """Returns a function that reads back what was logged."""
        raise NotImplementedError("a contract suite needs the fixture `records`")

    @pytest.fixture
    def stored(self) -> Stored:
        """Returns a function that collects everything that was sent or written."""
        raise NotImplementedError("a contract suite needs the fixture `stored`")

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Makes a run directory whose path would give its owner away."""
        directory = tmp_path / "secret-home" / "contract-run"
        directory.mkdir(parents=True)
        return directory

    def test_numbers_are_recorded_at_their_steps(
        self, factory: TrackerFactory, records: Records, directory: Path
    ) -> None:
        tracker = factory(directory, directory.name, SETTINGS)
        for step, loss in enumerate((0.5, 0.75, 0.25)):
            tracker.log(step, {"tokens": 100 * (step + 1), "loss": loss})
        tracker.finish({})
        assert list(records(directory)["loss"]) == [(0, 0.5), (1, 0.75), (2, 0.25)]
        assert [value for _, value in records(directory)["tokens"]] == [100, 200, 300]

    def test_each_step_may_have_other_keys(
        self, factory: TrackerFactory, records: Records, directory: Path
    ) -> None:
        """Steps ascend and may have gaps; a candidate that failed has no scores."""
        tracker = factory(directory, directory.name, SETTINGS)
        tracker.log(3, {"tokens": 100})
        tracker.log(7, {"tokens": 200, "scores/kl": 0.5})
        tracker.finish({})
        assert [step for step, _ in records(directory)["tokens"]] == [3, 7]
        assert list(records(directory)["scores/kl"]) == [(7, 0.5)]

    def test_results_are_recorded_at_the_end(
        self, factory: TrackerFactory, records: Records, directory: Path
    ) -> None:
        tracker = factory(directory, directory.name, SETTINGS)
        tracker.log(0, {"loss": 0.5})
        tracker.finish({"held_out/found/perplexity/total": 3.0})
        assert [value for _, value in records(directory)["held_out/found/perplexity/total"]] == [3.0]

    def test_a_run_without_results_finishes(
        self, factory: TrackerFactory, records: Records, directory: Path
    ) -> None:
        tracker = factory(directory, directory.name, SETTINGS)
        tracker.log(0, {"loss": 0.5})
        tracker.finish({})
        assert list(records(directory)["loss"]) == [(0, 0.5)]

    def test_nothing_is_printed_to_stdout(
        self, factory: TrackerFactory, directory: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Commands with --json own stdout."""
        tracker = factory(directory, directory.name, SETTINGS)
        tracker.log(0, {"loss": 0.5})
        tracker.finish({"held_out/found/perplexity/total": 3.0})
        assert capfd.readouterr().out == ""

    def test_no_path_is_sent(self, factory: TrackerFactory, stored: Stored, directory: Path) -> None:
        tracker = factory(directory, directory.name, SETTINGS)
        tracker.log(0, {"loss": 0.5})
        tracker.finish({"held_out/found/perplexity/total": 3.0})
        content = stored(directory)
        assert content, "`stored` returned nothing; expected everything that the tracker sent or wrote"
        for secret in ("secret-home", str(Path.home())):
            assert secret.encode() not in content, secret
