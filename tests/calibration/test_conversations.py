"""Rows become texts: a column, or a conversation in the model's chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.conversations import document_of
from gptailor_merge.calibration.text_files import FileRow
from gptailor_merge.errors import DataError
from gptailor_merge.models.chat_renderer import ChatRenderer
from gptailor_merge.models.loading import load_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(family: dict[str, str]) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(Path(family["base"]))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def renderer(tokenizer: PreTrainedTokenizerBase):  # type: ignore[no-untyped-def]
    with ChatRenderer(tokenizer) as renderer:
        yield renderer


def text_of(renderer: ChatRenderer, value: Any, column: str = "text") -> str:
    return document_of(FileRow("t.jsonl:3", value), column, renderer, "file: t.jsonl").text


HI = [{"role": "user", "content": "HI"}, {"role": "assistant", "content": "YO", "tool_calls": None}]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": HI}, "text"),
        ({"messages": HI, "text": None}, "text"),
        ({"talk": HI, "text": "other"}, "talk"),
        ({"conversations": [{"from": "human", "value": "HI"}, {"from": "gpt", "value": "YO"}]}, "text"),
        ({"conversations": HI}, "text"),
        ({"prompt": "HI", "completion": "YO"}, "text"),
        ({"prompt": HI[:1], "completion": HI[1:]}, "text"),
        ({"instruction": "HI", "input": "", "output": "YO"}, "text"),
    ],
)
def test_conversations_are_rendered(renderer: ChatRenderer, row: dict[str, Any], column: str) -> None:
    assert text_of(renderer, row, column) == " <user>HI<assistant>YO"


def test_an_instruction_comes_with_its_input(renderer: ChatRenderer) -> None:
    row = {"instruction": "ADD", "input": "1 2", "output": "3"}
    assert text_of(renderer, row) == " <user>ADD\n\n1 2<assistant>3"


def test_texts_are_taken_as_they_are(renderer: ChatRenderer) -> None:
    assert text_of(renderer, {"text": "A", "messages": HI}) == "A"
    assert text_of(renderer, {"content": "A"}, "content") == "A"
    assert text_of(renderer, "A") == "A"


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (
            {"content": "A", "id": 1},
            "text",
            "found the keys content, id; expected text, messages, conversations, prompt with completion or "
            "instruction with output; say which column is the text: {file: t.jsonl, column: content}, or "
            "--column content",
        ),
        ({"id": 1}, "body", "found the keys id; expected body; say which column"),
        ({}, "text", "found the keys none; expected text, messages"),
        ({"\x1b[2J": "A"}, "text", r"found the keys '\x1b[2J'; expected text"),
        ({"text": 3}, "text", "expected a text in \"text\", or a list of messages, found '3'"),
        ({"text": None}, "text", 'expected "text": "…", found null'),
        (3, "text", 'expected an object with "text": "…", found \'3\''),
        ({"messages": []}, "text", 'expected a text in "messages", or a list of messages, found'),
        ({"messages": ["A"]}, "text", 'expected a text in "messages", or a list of messages, found'),
        ({"messages": [{"speaker": "A"}]}, "text", 'from and value, in "messages", found speaker'),
        ({"prompt": "A", "completion": 3}, "text", 'expected a text in "completion", or a list of messages'),
        ({"text": "\ud83d half"}, "text", r"holds \ud83d, half of a character (a lone surrogate)"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "text", r"holds \udc00, half of a character"),
    ],
)
def test_other_rows_are_named(renderer: ChatRenderer, row: Any, column: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        text_of(renderer, row, column)
    assert str(caught.value).startswith("t.jsonl:3: ")
    assert message in str(caught.value)


def test_without_a_template_there_are_no_conversations(family: dict[str, str]) -> None:
    with (
        ChatRenderer(load_tokenizer(Path(family["base"]))) as renderer,
        pytest.raises(
            DataError, match=r"t\.jsonl:3: the tokenizer has no chat template; expected a model with"
        ),
    ):
        text_of(renderer, {"messages": HI})
