"""Some sequences are scored, some are fitted to, and some tell whether the fit helps."""

from __future__ import annotations

import pytest
import torch

from gptailor_merge.calibration.held_back import beyond
from gptailor_merge.calibration.texts import TokenSet


@pytest.mark.parametrize(
    ("scored", "most", "expected"),
    [(0, 12, [0, 1, 2]), (5, 12, [2, 3, 4]), (8, 99, [2, 3, 4, 5]), (9, 99, [0, 1, 2, 3, 4, 5]), (0, 1, [0])],
)
def test_what_is_fitted_to_lies_behind_what_is_scored_if_enough_is_left(
    scored: int, most: int, expected: list[int]
) -> None:
    whole = TokenSet("a", tuple(torch.full((4,), number) for number in range(6)), "digest")
    part = beyond(whole, scored, most)
    assert [int(ids[0]) for ids in part.sequences] == expected
    assert part.digest != whole.digest
