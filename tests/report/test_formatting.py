"""Numbers and names as people read them."""

from __future__ import annotations

from gptailor_merge.report.formatting import wrapped


def test_long_names_are_broken_between_their_words() -> None:
    assert wrapped("short") == ["short"]
    assert wrapped("gptailor_blimp_left_branch_island_echo_question") == [
        "gptailor_blimp_left_",
        "branch_island_echo_",
        "question",
    ]
    assert "".join(wrapped("x" * 50)) == "x" * 50
