"""Do tokenizer, special tokens and chat template of a model directory fit its embeddings?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gptailor_merge.checking.finding import SENTENCE, Finding, not_tried, reason
from gptailor_merge.models.loading import load_tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


_CONVERSATION = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 is 5."},
    {"role": "user", "content": "And 4 + 5?"},
]


def tokenizer(directory: Path, rows: int | None) -> tuple[Finding, PreTrainedTokenizerBase | None]:
    """Whether the tokenizer loads, gives a sentence back, and has a row for each token.

    Args:
        rows: of the embeddings, where they are known.
    """
    name = "tokenizer"
    if not any((directory / file).exists() for file in _FILES):
        return Finding(name, "warn", "there is none; whoever uses the model has to bring it"), None
    try:
        loaded = load_tokenizer(directory)
        text = str(loaded.decode(loaded.encode(SENTENCE, add_special_tokens=False)))
    except Exception as error:  # tokenizers are files of many forms; whatever breaks is the finding
        return Finding(name, "fail", f"cannot be used: {reason(error)}"), None
    # Tokenizers may change spacing and case; letters, digits and signs must come back.
    if "".join(text.split()).casefold() != "".join(SENTENCE.split()).casefold():
        return Finding(name, "fail", f"{SENTENCE!r} comes back as {text!r}"), loaded
    if rows is None:
        return Finding(name, "warn", "a sentence comes back; config.json names no vocab_size"), loaded
    if len(loaded) > rows:
        first = loaded.convert_ids_to_tokens(rows)
        sentence = f"{len(loaded):,} tokens for {rows:,} rows of the embeddings; {first!r} has none"
        return Finding(name, "fail", sentence), loaded
    sentence = f"{len(loaded):,} tokens for {rows:,} rows of the embeddings; a sentence comes back"
    return Finding(name, "ok", sentence), loaded


def special_tokens(directory: Path, raw: Mapping[str, Any], rows: int | None) -> Finding:
    """Whether the ids in config.json and generation_config.json are rows of the embeddings."""
    name = "special tokens"
    documents: dict[str, Any] = {"config.json": raw}
    file = directory / "generation_config.json"
    if file.exists():
        try:
            documents[file.name] = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            return Finding(name, "fail", f"{file.name}: cannot be read: {error}")
    if rows is None:
        return not_tried("config.json names no vocab_size", name)[0]
    given = [
        (source, key, token)
        for source, document in documents.items()
        for key in _SPECIAL
        for token in _listed(document.get(key))
    ]
    for source, key, token in given:
        if not isinstance(token, int) or not 0 <= token < rows:
            return Finding(name, "fail", f"{source}: {key} is {token!r}; expected 0 to {rows - 1}")
    return Finding(name, "ok", f"{len(given)} ids in {' and '.join(documents)}, all in the vocabulary")


def _listed(value: Any) -> list[Any]:
    """None, one id or several."""
    return value if isinstance(value, list) else [] if value is None else [value]


def chat_template(tokenizer: PreTrainedTokenizerBase | None) -> Finding:
    """Whether a conversation of two turns comes out whole."""
    if tokenizer is None:
        return not_tried("there is no usable tokenizer", "chat template")[0]
    if not tokenizer.chat_template:
        return Finding("chat template", "ok", "there is none; the model completes texts")
    try:
        text = tokenizer.apply_chat_template(_CONVERSATION, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs
        return Finding("chat template", "fail", f"cannot be rendered: {reason(error)}")
    lost = [turn["content"] for turn in _CONVERSATION if turn["content"] not in str(text)]
    if lost:
        return Finding("chat template", "fail", f"renders a conversation of two turns without {lost[0]!r}")
    return Finding("chat template", "ok", "renders a conversation of two turns")
