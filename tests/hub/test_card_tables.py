"""Numbers and names fit into the tables of a card."""

from __future__ import annotations

from gptailor_merge.hub import card_tables
from gptailor_merge.hub.card_tables import markdown
from gptailor_merge.objectives.scores import Score


def test_digits_are_those_that_the_standard_error_allows() -> None:
    for error, written in (
        (0.0337, "0.655 ± 0.034"),
        (1.18, "0.7 ± 1.2"),
        (250.0, "1 ± 250"),
        (0.0, "0.6550"),
        (None, "0.6550"),
    ):
        assert card_tables.score_text(Score(0.655, 200, "plain", error)) == written


def test_no_text_ends_a_cell_or_a_row() -> None:
    assert markdown(["a"], [["x | y\nz"]]).splitlines()[-1] == r"| x \| y\\nz |"
