"""Finds the text of a row: a column, or a conversation that the model's chat template renders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor_merge.calibration.text_files import FileRow
from gptailor_merge.errors import DataError, FamilyError
from gptailor_merge.models.chat_renderer import ChatRenderer

TEXT = "text"
"""The column that is read where no other is named."""


CHATS = ("messages", "conversations")
"""Columns that hold a list of messages."""


TURNS = (("prompt", "completion"), ("instruction", "output"))
"""Pairs of columns that hold a question and its answer."""


_INPUT = "input"
"""The column that goes with an instruction, as Alpaca has it."""


KNOWN = frozenset((TEXT, *CHATS, *(name for pair in TURNS for name in pair), _INPUT))
"""Columns that are read without being named."""


_ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles -> those of chat templates; other names are the same."""


@dataclass(frozen=True)
class TextDocument:
    """A text of a source.

    Attributes:
        text: what a tokenizer gets; it can be written as UTF-8.
        is_chat: True where a chat template made it, with the special tokens that belong there.
    """

    text: str
    is_chat: bool = False


def document_of(row: FileRow, column: str, renderer: ChatRenderer, source: str) -> TextDocument:
    """Returns the text of a row.

    Args:
        column: the one that holds a text or a list of messages; TEXT stands for what else is KNOWN, too.
        renderer: renders messages.
        source: what the data are called in a config, for messages.

    Raises:
        DataError: names the row, the columns that it has, and what to write.
    """
    content = _content(row, column, source)
    if isinstance(content, str):
        document = TextDocument(content)
    else:
        try:
            document = TextDocument(renderer.render(content), is_chat=True)
        except FamilyError as error:
            raise DataError(f"{row.place}: {error}") from None
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        half = ord(document.text[error.start])
        raise DataError(
            f"{row.place}: holds \\u{half:04x}, half of a character (a lone surrogate); "
            "expected whole characters"
        ) from None
    return document


def _content(row: FileRow, column: str, source: str) -> str | list[Any]:
    """Returns a row's text, or its messages."""
    value = row.value
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise DataError(f'{row.place}: expected an object with "{column}": "…", found {str(value)[:40]!r}')
    present = {key: inner for key, inner in value.items() if inner is not None}
    if column in present:
        return _text_or_messages(row.place, column, present[column])
    if column == TEXT:
        for name in CHATS:
            if name in present:
                return _text_or_messages(row.place, name, present[name])
        for asked, answered in TURNS:
            if asked in present and answered in present:
                return _turns(row.place, present, asked, answered)
    keys = _in_words(value)
    if column in value:
        raise DataError(f'{row.place}: expected "{column}": "…", found null')
    others = ", messages, conversations, prompt with completion or instruction with output"
    expected = column + (others if column == TEXT else "")
    texts = [key for key, inner in present.items() if isinstance(inner, str)]
    example = _in_words([*texts, *value, "content"][:1])
    hint = f"say which column is the text: {{{source}, column: {example}}}, or --column {example}"
    raise DataError(f"{row.place}: found the keys {keys}; expected {expected}; {hint}")


def _text_or_messages(place: str, name: str, value: Any) -> str | list[Any]:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(entry, Mapping) for entry in value):
        return [_message(place, name, entry) for entry in value]
    raise DataError(f'{place}: expected a text in "{name}", or a list of messages, found {str(value)[:40]!r}')


def _message(place: str, name: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a message as chat templates know it: a role and what it says."""
    if "role" in entry:
        return entry
    role, said = entry.get("from"), entry.get("value")
    if isinstance(role, str) and isinstance(said, str):
        return {"role": _ROLES.get(role, role), "content": said}
    keys = _in_words(entry)
    raise DataError(
        f'{place}: expected messages with role and content, or from and value, in "{name}", found {keys}'
    )


def _turns(place: str, row: Mapping[str, Any], asked: str, answered: str) -> list[Any]:
    """Returns the messages of a question and its answer, each a text or a list of messages."""
    messages: list[Any] = []
    for name, role in ((asked, "user"), (answered, "assistant")):
        said = _text_or_messages(place, name, row[name])
        if isinstance(said, str):
            more = row.get(_INPUT) if name == "instruction" else None
            said = [{"role": role, "content": f"{said}\n\n{more}" if more else said}]
        messages += said
    return messages


def _in_words(keys: Iterable[object]) -> str:
    """Returns the names of columns, in which a stranger may have written anything."""
    names = (text if text.isprintable() else repr(text) for text in map(str, keys))
    return ", ".join(names)[:200] or "none"
