"""One thread computes where more do not pay, and a run keeps the number that it was begun with."""

from __future__ import annotations

import pytest
import torch

from gptailor_merge.scoring import threads
from gptailor_merge.scoring.threads import choose_threads, computing_with, seconds_of_product

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def free_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    current = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: current[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: current.__setitem__(0, count))


@pytest.mark.parametrize(("speedup", "chosen"), [(0.1, 1), (1.0, 1), (3.0, 4)])
def test_more_threads_must_pay(speedup: float, chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        threads, "seconds_of_product", lambda size: 1.0 if torch.get_num_threads() == 1 else 1 / speedup
    )
    assert choose_threads(CPU, 1200, before=None, is_new=True) == chosen
    assert torch.get_num_threads() == 4


def test_what_the_user_or_the_run_says_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "seconds_of_product", None)
    assert choose_threads(CPU, 1200, before=2, is_new=False) == 2
    assert choose_threads(CPU, 1200, before=None, is_new=False) == 4
    assert choose_threads(torch.device("cuda"), 1200, before=None, is_new=True) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_threads(CPU, 1200, before=2, is_new=False) == 4


def test_threads_are_set_inside_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SECONDS", 0.0)
    with computing_with(2):
        assert torch.get_num_threads() == 2
        assert seconds_of_product(1200) > 0
    assert torch.get_num_threads() == 4
