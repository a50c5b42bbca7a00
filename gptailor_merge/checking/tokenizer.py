"""Checks that tokenizer, special tokens and chat template of a model directory fit its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gptailor_merge.checking.finding import SENTENCE, Finding, not_tried, reason
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.chat_renderer import ChatRenderer
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.models.stranger_files import read_object

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


_CONVERSATION = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 is 5."},
    {"role": "user", "content": "And 4 + 5?"},
]


def check_tokenizer(directory: Path, rows: int | None) -> tuple[Finding, PreTrainedTokenizerBase | None]:
    """Checks that the tokenizer loads, gives a sentence back, and has an embedding for each token.

    Args:
        rows: number of rows of the embeddings; None where it is not known.

    Returns:
        The finding, and the tokenizer where it is usable.
    """
    name = "tokenizer"
    if not any((directory / file).exists() for file in _FILES):
        return Finding(name, "warn", "there is none; whoever uses the model has to bring it"), None
    try:
        tokenizer = load_tokenizer(directory)
        text = str(tokenizer.decode(tokenizer.encode(SENTENCE, add_special_tokens=False)))
    except Exception as error:  # tokenizers come in many file formats; whatever breaks is the finding
        return Finding(name, "fail", f"cannot be used: {reason(error)}"), None
    # Tokenizers may change spacing and case; letters, digits and signs must come back.
    if "".join(text.split()).casefold() != "".join(SENTENCE.split()).casefold():
        return Finding(name, "fail", f"{SENTENCE!r} comes back as {text!r}"), tokenizer
    if rows is None:
        return Finding(name, "warn", "a sentence comes back; config.json names no vocab_size"), tokenizer
    if len(tokenizer) > rows:
        first = tokenizer.convert_ids_to_tokens(rows)
        sentence = f"{len(tokenizer):,} tokens for {rows:,} rows of the embeddings; {first!r} has none"
        return Finding(name, "fail", sentence), tokenizer
    sentence = f"{len(tokenizer):,} tokens for {rows:,} rows of the embeddings; a sentence comes back"
    return Finding(name, "ok", sentence), tokenizer


def check_special_tokens(directory: Path, config: Mapping[str, Any], rows: int | None) -> Finding:
    """Checks that the token ids in config.json and generation_config.json are rows of the embeddings.

    Args:
        config: the document in config.json.
        rows: number of rows of the embeddings; None where it is not known.
    """
    name = "special tokens"
    documents: dict[str, Any] = {"config.json": config}
    file = directory / "generation_config.json"
    if file.exists():
        try:
            documents[file.name] = read_object(file)
        except FamilyError as error:
            return Finding(name, "fail", str(error).removeprefix(f"{directory}/"))
    if rows is None:
        return not_tried("config.json names no vocab_size", name)[0]
    ids = [
        (source, key, token)
        for source, document in documents.items()
        for key in _SPECIAL
        for token in _as_list(document.get(key))
    ]
    for source, key, token in ids:
        if not isinstance(token, int) or not 0 <= token < rows:
            return Finding(name, "fail", f"{source}: {key} is {token!r}; expected 0 to {rows - 1}")
    return Finding(name, "ok", f"{len(ids)} ids in {' and '.join(documents)}, all in the vocabulary")


def check_chat_template(tokenizer: PreTrainedTokenizerBase | None) -> Finding:
    """Checks that the chat template renders a conversation of two turns without losing anything."""
    if tokenizer is None:
        return not_tried("there is no usable tokenizer", "chat template")[0]
    if not tokenizer.chat_template:
        return Finding("chat template", "ok", "there is none; the model completes texts")
    try:
        with ChatRenderer(tokenizer) as renderer:
            text = renderer.render(_CONVERSATION, add_generation_prompt=True)
    except FamilyError as error:
        return Finding("chat template", "fail", str(error).removeprefix("the chat template "))
    lost = [turn["content"] for turn in _CONVERSATION if turn["content"] not in text]
    if lost:
        return Finding("chat template", "fail", f"renders a conversation of two turns without {lost[0]!r}")
    return Finding("chat template", "ok", "renders a conversation of two turns")


def _as_list(value: Any) -> list[Any]:
    """Returns a list of ids for a key that may hold none, one or several."""
    return value if isinstance(value, list) else [] if value is None else [value]
