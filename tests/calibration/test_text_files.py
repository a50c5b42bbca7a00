"""Files of every kind give the same rows, and those that cannot be read are named with file and line."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from gptailor_merge.calibration.text_files import rows_in
from gptailor_merge.errors import DataError

ROWS = [{"text": f"row {n}", "number": n} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXT = frozenset(["text"])


def values(path: Path) -> list[Any]:
    return [row.value for row in rows_in(path, TEXT)]


def write(file: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    file.write_bytes(gzip.compress(raw, mtime=0) if file.suffix == ".gz" else raw)
    return file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", LINES),
        ("t.JSONL", "\n\n" + LINES.replace("\n", "\r\n")),
        ("t.jsonl", "\ufeff" + LINES),
        ("t.jsonl.gz", LINES),
        ("t.json", json.dumps(ROWS)),
        ("t.json", "\ufeff\n" + json.dumps(ROWS, indent=2)),
        ("t.json", LINES),
        ("t.json.gz", json.dumps(ROWS)),
    ],
)
def test_the_same_rows_in_every_form(tmp_path: Path, name: str, content: str) -> None:
    assert values(write(tmp_path / name, content)) == ROWS


def test_a_table_is_read_as_far_as_it_can_be_used(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert values(tmp_path / "t.parquet") == [{"text": row["text"]} for row in ROWS]
    rows = list(rows_in(tmp_path / "t.parquet", ["text", "number"]))
    assert [row.value for row in rows] == ROWS
    assert rows[2].place == f"{tmp_path / 't.parquet'}: row 3"


def test_a_txt_is_one_text_with_or_without_a_mark(tmp_path: Path) -> None:
    for name in ("t.txt", "t.txt.gz"):
        assert values(write(tmp_path / name, "\ufeffone\r\ntwo\n")) == ["one\ntwo\n"]


def test_a_directory_is_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "data" / "b").mkdir(parents=True)
    (tmp_path / "data" / ".cache").mkdir()
    write(tmp_path / "data" / "c.txt", "last")
    write(tmp_path / "data" / "b" / "two.jsonl", LINES)
    write(tmp_path / "data" / "a.json.gz", '[{"text": "first"}]')
    write(tmp_path / "data" / "README.md", "of no interest")
    write(tmp_path / "data" / ".cache" / "x.txt", "hidden")
    assert values(tmp_path / "data") == [{"text": "first"}, *ROWS, "last"]


def test_a_long_value_in_a_list_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"text": "a\n" * 100_000}, {"text": "b"}]
    file = write(tmp_path / "t.json", json.dumps(rows, indent=1))
    assert [(row.value, row.place) for row in rows_in(file, TEXT)] == [
        (rows[0], f"{file}:2"),
        (rows[1], f"{file}:5"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "süß".encode("latin-1"), "t.txt:1: not UTF-8, found the byte 0xfc; it may be Latin-1"),
        ("t.txt", b"a\nb\n\x80", "t.txt:3: not UTF-8, found the byte 0x80"),
        ("t.jsonl", LINES.encode() + "ü".encode("cp1252"), "t.jsonl:4: not UTF-8, found the byte 0xfc"),
        ("t.json", b'[\n{"text": "\xe9"}]', "t.json:2: not UTF-8, found the byte 0xe9"),
        ("t.txt", b"\xed\xa0\xbd", "t.txt:1: not UTF-8, found the byte 0xed"),
        ("t.txt", "ab".encode("utf-16"), "it looks like UTF-16; save it as UTF-8"),
        ("t.jsonl", LINES.encode("utf-16-be"), "it looks like UTF-16; save it as UTF-8"),
        ("t.txt", "ab".encode("utf-16-le"), "found the byte 0x00; it looks like UTF-16"),
        ("t.jsonl", gzip.compress(LINES.encode(), mtime=0), "which is read under the name t.jsonl.gz"),
        ("t.txt", b"PAR1\x80", "which is read under the name t.parquet"),
        ("t.txt.gz", b"\xff\xfea", "t.txt.gz:1: not UTF-8, found the byte 0xff; the file inside"),
        ("t.jsonl", "nonsense\n", "t.jsonl:1: not JSON (Expecting value: line 1 column 1 (char 0)), found"),
        ("t.jsonl", json.dumps(ROWS, indent=1), "t.jsonl:1: not JSON"),
        ("t.jsonl", "[" * 100_000, "t.jsonl:1: not JSON (maximum recursion depth exceeded"),
        ("t.json", "[" * 100_000, "t.json:1: not JSON (maximum recursion depth exceeded"),
        ("t.json", '[{"text": "a"},\n{"text": nonsense}', "t.json:2: not JSON"),
        ("t.json", '[{"text": "a"},\n', "t.json:2: the file ends before its list does"),
        ("t.json", '[{"text": "a', "t.json:1: not JSON (Unterminated string"),
        ("t.parquet", "nonsense", "t.parquet: cannot be read as parquet: "),
        ("t.jsonl.gz", None, "t.jsonl.gz: no such file"),
        ("t.csv", "", "t.csv: expected a .jsonl, .json or .txt file, any of them also as .gz, or a .parquet"),
        ("t.parquet.gz", "", "t.parquet.gz: expected a .jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        values(tmp_path / name)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    for name, content in (("a", gzip.compress(LINES.encode(), mtime=0)[:-12]), ("b", b"nonsense")):
        file = tmp_path / f"{name}.jsonl.gz"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"\.jsonl\.gz: cannot be read: "):
            values(file)


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt: neither a file nor a directory"):
        values(tmp_path / "pipe.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the directory holds no texts; expected"):
        values(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "head", "endless", "message"),
    [
        ("t.jsonl.gz", b'{"text": "', b"a", "a line of more than 16,777,216 characters"),
        ("t.jsonl.gz", b"", b"\n", "more than 10,000 blank lines in a row"),
        ("t.json.gz", b"[", b" ", "characters of white space"),
        ("t.json.gz", b'["', b"a", "a value of more than 16,777,216 characters"),
    ],
)
def test_a_bomb_is_read_no_further_than_a_sentence(
    tmp_path: Path, name: str, head: bytes, endless: bytes, message: str
) -> None:
    file = tmp_path / name
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(head)
        for _ in range(18):
            stream.write(endless * 2**20)
    begun = time.process_time()
    with pytest.raises(DataError, match=message):
        values(file)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("write_rows", [json.dumps, lambda rows: "".join(json.dumps(r) + "\n" for r in rows)])
def test_no_more_is_read_than_is_asked_for(tmp_path: Path, write_rows: Callable[[Any], str]) -> None:
    """The end of the file is nonsense, which nobody sees who wants the beginning."""
    text = write_rows([{"text": "abc" * 100}] * 1000)
    file = write(tmp_path / "t.json", text[:-10] + "nonsense")
    rows = rows_in(file, TEXT)
    assert [next(rows).value["text"][:3] for _ in range(5)] == ["abc"] * 5
    with pytest.raises(DataError):
        list(rows)
