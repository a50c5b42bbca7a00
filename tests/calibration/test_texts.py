"""Texts are tokenised, joined and cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor_merge.calibration.texts import TextSource, tokenize
from gptailor_merge.errors import DataError
from gptailor_merge.models.loading import load_tokenizer


@pytest.fixture
def tokenizer(family: dict[str, str]):  # type: ignore[no-untyped-def]
    return load_tokenizer(Path(family["base"]))


def test_documents_are_joined_by_eos_and_cut(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "ABC"}\n\n{"text": "DE"}\n')
    token_set = tokenize("t", TextSource(str(file)), tokenizer, tokens=99, sequence_length=3)
    letters = [[tokenizer.decode([i]) for i in ids] for ids in token_set.sequences]
    assert letters == [["A", "B", "C"], [" ", "D", "E"]]
    assert token_set.units == 4


def test_at_most_so_many_tokens_are_taken(texts: dict[str, str], tokenizer) -> None:  # type: ignore[no-untyped-def]
    token_set = tokenize("t", TextSource(texts["sums"]), tokenizer, tokens=50, sequence_length=16)
    assert [len(ids) for ids in token_set.sequences] == [16, 16, 16]


def test_a_short_source_is_one_short_sequence(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "t.txt"
    file.write_text("ABCD")
    token_set = tokenize("t", TextSource(str(file)), tokenizer, tokens=50, sequence_length=16)
    assert [len(ids) for ids in token_set.sequences] == [4]


def test_the_digest_is_of_the_content(texts: dict[str, str], tokenizer) -> None:  # type: ignore[no-untyped-def]
    def digest(name: str, length: int) -> str:
        return tokenize(name, TextSource(texts[name]), tokenizer, tokens=64, sequence_length=length).digest

    assert digest("sums", 16) == digest("sums", 16)
    assert len({digest("sums", 16), digest("sums", 8), digest("stories", 16)}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "A"}\n{"txt": 1}\n', 't.jsonl:2: expected an object with "text": "…"'),
        ("t.jsonl", "nonsense\n", 't.jsonl:1: expected an object with "text": "…"'),
        ("t.jsonl", "", "fewer than two tokens; nothing can be scored"),
        ("t.csv", "", "expected a .jsonl or .txt file"),
        ("t.txt", None, "no such file"),
    ],
)
def test_wrong_files_are_named(
    tmp_path: Path,
    tokenizer,  # type: ignore[no-untyped-def]
    name: str,
    content: str | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        tokenize("t", TextSource(str(tmp_path / name)), tokenizer, tokens=9, sequence_length=4)
    assert message in str(caught.value)
