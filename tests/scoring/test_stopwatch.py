from __future__ import annotations

import time

import pytest
import torch

from gptailor_merge.scoring.stopwatch import Stopwatch


def test_parts_of_one_name_are_added_up_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    stopwatch, seconds = Stopwatch(torch.device("cpu")), {"head": 100.0, "forward": 0.0}
    for part in ("head", "forward"):
        with stopwatch.of(part):
            pass
    with pytest.raises(ValueError, match="a part that fails"), stopwatch.of("head"):
        raise ValueError("a part that fails counts, too")
    for _ in range(2):
        stopwatch.read_into(seconds)
        assert seconds == {"head": 106.0, "forward": 2.0}
