"""The facts about a run as a whole are typed, and on disk as they always were."""

from __future__ import annotations

from pathlib import Path

from gptailor_merge.objectives.scores import Score
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.metadata import Dimensions, Metadata
from gptailor_merge.scoring.gap import Gap

GAP = Gap("kl", ("a", "b"), 0.5, 0.25, 0.125, 0.375)
WHOLE = Metadata(
    baseline="sleb of math",
    axes=("kl", "parameters"),
    warnings=("a: searched on its test split",),
    sizes={"base": Dimensions(5, 1000), "found": Dimensions(4, 800)},
    gaps={"0123": (GAP,), "4567": ()},
    stages={"0123": {"kl": {"a": Score(0.5, 8), "b": Score(0.25, 8, "nats", 0.125)}}},
)


def test_keys_and_texts_are_those_of_format_4() -> None:
    assert WHOLE.to_rows() == {
        "baseline": "sleb of math",
        "axes": '["kl", "parameters"]',
        "warnings": '["a: searched on its test split"]',
        "sizes": '{"base": [5, 1000], "found": [4, 800]}',
        "gaps": '{"0123": [{"objective": "kl", "sets": ["a", "b"], "searched": 0.5, "held_out": 0.25, '
        '"low": 0.125, "high": 0.375}], "4567": []}',
        "stages": r'{"0123": "{\"kl\": {\"a\": [0.5, 8, \"nats\"], \"b\": [0.25, 8, \"nats\", 0.125]}}"}',
    }


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    begun = Metadata(baseline="", axes=("kl",))
    with Journal(tmp_path / "journal.db") as journal:
        assert journal.metadata() == Metadata()
        for metadata in (begun, WHOLE):
            journal.describe(metadata)
            assert journal.metadata() == metadata


def test_what_is_not_known_yet_does_not_replace_what_is(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.describe(WHOLE)
        journal.describe(Metadata())
        assert journal.metadata() == Metadata(sizes=WHOLE.sizes, gaps=WHOLE.gaps, stages=WHOLE.stages)
