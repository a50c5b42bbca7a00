"""Freed heap goes back to the operating system, not too often."""

from __future__ import annotations

import sys

import pytest

from gptailor_merge.composing import heap


def test_the_heap_is_trimmed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], list[int]()
    monkeypatch.setattr(heap.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heap, "trim_of_glibc", lambda: calls.append)
    trimmer = heap.HeapTrimmer()
    for now[0] in (1.0, 3.0, 4.0, 7.0):
        trimmer.trim()
    assert calls == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_glibc_says_whether_it_gave_something_back() -> None:
    assert heap.trim_of_glibc()(0) in (0, 1)
