"""Reads the rows of text files: .jsonl, .json, .parquet, .txt, and directories of them.

Files are read lazily, and no line or value of a file is longer in memory than LONGEST; what is gzipped
(.jsonl.gz, .json.gz, .txt.gz) is no different.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gptailor_merge.errors import DataError

LONGEST = 2**24
"""Characters of the longest line or value; a .txt with more is several texts."""


MOST_BLANK = 10_000
"""Blank lines that may follow one another."""


_PIECE = 2**16
"""Characters that are read of a .json at first."""


_ZIPPED = ".gz"


@dataclass(frozen=True)
class FileRow:
    """A row of a file.

    Attributes:
        place: its file and line, or its number, for messages.
        value: whatever stands there; a row of a table is a mapping.
    """

    place: str
    value: Any


def rows_in(path: Path, columns: Collection[str]) -> Iterator[FileRow]:
    """Yields the rows of a file, or of all files in a directory, in the order of their names.

    Args:
        columns: names that the caller can use; a table with any of them is read no further.

    Raises:
        DataError: names the file, the line, what stands there and what was expected.
    """
    for file in data_files(path):
        reader = _READERS.get(_ending(file) or "")
        if reader is None:
            yield from _from_parquet(file, columns)
            continue
        with _opened(file) as stream:
            yield from reader(file, stream)


def data_files(path: Path) -> list[Path]:
    """Returns the file itself, or the files of a directory that hold texts, by name.

    Raises:
        DataError: there is nothing at the path, or nothing of a kind that is read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _ending(file) and file.is_file())
        visible = [file for file in files if not any(p[0] == "." for p in file.relative_to(path).parts)]
        if not visible:
            raise DataError(f"{path}: the directory holds no texts; expected {KINDS}")
        return visible
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: neither a file nor a directory; expected {KINDS}")
    if not _ending(path):
        raise DataError(f"{path}: expected {KINDS}, or a directory of such files")
    return [path]


def bare_name(path: str | Path) -> str:
    """Returns a file's name without the endings of texts.

    >>> bare_name("texts/stories.jsonl.gz")
    'stories'
    """
    file = Path(path)
    name = file.name[: -len(_ZIPPED)] if file.suffix.lower() == _ZIPPED else file.name
    return Path(name).stem


def _ending(file: Path) -> str | None:
    """Returns the ending that says how a file is read; None where it is not."""
    name = file.name.lower()
    ending = Path(name.removesuffix(_ZIPPED)).suffix
    if ending == ".parquet":
        return None if name.endswith(_ZIPPED) else ending
    return ending if ending in _READERS else None


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    """Opens a file; bytes that are not UTF-8 become lone surrogates, which `_refuse_strange` names.

    Raises:
        DataError: the file cannot be read.
    """
    opened: Any = gzip.open if file.name.lower().endswith(_ZIPPED) else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", errors="surrogateescape") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None


def _refuse_strange(file: Path, line: int, text: str) -> None:
    """Refuses bytes that are not UTF-8, or that no text holds.

    Args:
        line: number of the text's first line.

    Raises:
        DataError: names file, line and byte, and guesses what the file is.
    """
    strange = text.find("\0")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        strange = error.start
    if strange < 0:
        return
    line += text.count("\n", 0, strange)
    byte = ord(text[strange]) & 0xFF
    raise DataError(f"{file}:{line}: not UTF-8, found the byte 0x{byte:02x}; {_guess(file)}")


def _guess(file: Path) -> str:
    """Returns a hint on what a file is that is no UTF-8."""
    if file.name.lower().endswith(_ZIPPED):
        return "the file inside is expected to be saved as UTF-8"
    with file.open("rb") as stream:
        head = stream.read(256)
    if head.startswith(b"\x1f\x8b"):
        return f"it looks like gzip, which is read under the name {file.name}{_ZIPPED}"
    if head.startswith(b"PAR1"):
        return f"it looks like parquet, which is read under the name {file.stem}.parquet"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        return "it looks like UTF-16; save it as UTF-8"
    return "it may be Latin-1 or Windows-1252; save it as UTF-8"


def _from_jsonl(file: Path, stream: TextIO) -> Iterator[FileRow]:
    number, blank = 0, 0
    while line := stream.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and not line.endswith("\n"):
            raise DataError(f"{file}:{number}: a line of more than {LONGEST:,} characters")
        blank = 0 if line.strip() else blank + 1
        if blank > MOST_BLANK:
            raise DataError(f"{file}:{number}: more than {MOST_BLANK:,} blank lines in a row")
        if blank:
            continue
        _refuse_strange(file, number, line)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file}:{number}: not JSON ({_reason(error)}), found {line.strip()[:40]!r}; "
                "expected an object in each line"
            ) from None
        yield FileRow(f"{file}:{number}", value)


def _from_json(file: Path, stream: TextIO) -> Iterator[FileRow]:
    """Yields the values of a list, or values that follow one another."""
    values = _JsonValues(file, stream)
    is_list = values.next_character() == "["
    values.at += is_list
    while (character := values.next_character(",")) not in ("", "]"):
        yield FileRow(f"{file}:{values.line}", values.take())
    if is_list and not character:
        raise DataError(f"{file}:{values.line}: the file ends before its list does")


class _JsonValues:
    """JSON values in a stream, which are decoded one after the other.

    Attributes:
        line: number of the line that is being read.
        at: place in the text that has been read and not yet dropped.
    """

    def __init__(self, file: Path, stream: TextIO):
        self._file, self._stream = file, stream
        self._decoder = json.JSONDecoder()
        self._text = ""
        self.line, self.at = 1, 0

    def next_character(self, separators: str = "") -> str:
        """Skips white space and separators, and returns what follows; an empty text at the end."""
        skipped = 0
        while True:
            while self.at < len(self._text):
                character = self._text[self.at]
                if not (character.isspace() or character in separators):
                    return character
                self.line += character == "\n"
                self.at += 1
                skipped += 1
            if skipped > LONGEST // 16:
                raise DataError(f"{self._file}:{self.line}: more than {skipped:,} characters of white space")
            if not self._read(_PIECE):
                return ""

    def take(self) -> Any:
        """Decodes the value that comes next."""
        size = _PIECE
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self.at)
            except (ValueError, RecursionError) as error:
                length = len(self._text) - self.at
                if length > LONGEST:
                    raise DataError(
                        f"{self._file}:{self.line}: a value of more than {LONGEST:,} characters"
                    ) from None
                if not (self._may_be_cut(error) and self._read(size)):
                    found = self._text[self.at : self.at + 40]
                    raise DataError(
                        f"{self._file}:{self.line}: not JSON ({_reason(error)}), found {found!r}; "
                        "expected a list of objects, or objects"
                    ) from None
                size *= 2
            else:
                self.line += self._text.count("\n", self.at, end)
                self.at = end
                return value

    def _may_be_cut(self, error: Exception) -> bool:
        """Tells whether an error may be due to what has not been read yet."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated")

    def _read(self, size: int) -> bool:
        """Reads on; False at the end of the file."""
        piece = self._stream.read(size)
        remaining = self._text[self.at :]
        _refuse_strange(self._file, self.line + remaining.count("\n"), piece)
        self._text, self.at = remaining + piece, 0
        return bool(piece)


def _from_txt(file: Path, stream: TextIO) -> Iterator[FileRow]:
    line = 1
    while text := stream.read(LONGEST):
        _refuse_strange(file, line, text)
        yield FileRow(f"{file}:{line}", text)
        line += text.count("\n")


_READERS: dict[str, Callable[[Path, TextIO], Iterator[FileRow]]] = {
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".txt": _from_txt,
}
"""Ending -> what reads such a file, gzipped or not."""


KINDS = "a .jsonl, .json or .txt file, any of them also as .gz, or a .parquet file"
"""The kinds of files, for messages."""


def _from_parquet(file: Path, columns: Collection[str]) -> Iterator[FileRow]:
    """Yields the rows of a table, with its usable columns, or with empty ones where it has none of these."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            usable = [name for name in names if name in columns]
            if not usable:
                yield FileRow(f"{file}: row 1", dict.fromkeys(names))
                return
            for batch in table.iter_batches(batch_size=64, columns=usable):
                for value in batch.to_pylist():
                    number += 1
                    yield FileRow(f"{file}: row {number}", value)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as parquet: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Returns the first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
