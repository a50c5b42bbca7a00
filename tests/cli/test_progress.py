"""A search's progress counts what this process scores, not what a journal knew."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from gptailor_merge.cli import progress
from gptailor_merge.cli.progress import Bar, Lines
from gptailor_merge.cli.terminal import PlainConsole
from gptailor_merge.search.candidates import Candidate, Status

CANDIDATE = Candidate(0, "d", "", Status.SCORED, 0.5, {}, "f", seconds=2.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_of_a_resumed_search_tell_its_own_speed_and_the_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = Lines(PlainConsole(file=stream))
    lines.begin(20)
    for number in range(12):
        lines.candidate(replace(CANDIDATE, number=number, replayed=number < 8))
        clock[0] += 0.0 if number < 8 else 2.0
    shown = stream.getvalue().splitlines()
    assert shown[3] == "8/20: best 0.5000, from the journal"
    assert shown[5] == "12/20: best 0.5000, 30 candidates/min, about 16 s left of the search"


def test_a_bar_forgets_the_speed_of_what_the_journal_knew() -> None:
    bar = Bar(PlainConsole(file=io.StringIO(), force_terminal=True, width=200))
    bar.begin(20)
    for number in range(9):
        bar.candidate(replace(CANDIDATE, number=number, replayed=number < 8))
    (task,) = bar._bar.tasks
    assert task.completed == 9
    assert len(task._progress) == 1
    bar.end()
