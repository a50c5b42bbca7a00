"""Loads dense models and their tokenizers; safetensors only, no remote code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.digests import digest
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.auto_classes import auto_class
from gptailor_merge.models.chosen_weights import choose
from gptailor_merge.models.configs import load_config
from gptailor_merge.models.remote_code import words_of
from gptailor_merge.models.stranger_files import check_entries

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json")
"""Files of which every tokenizer has one."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model directory.

    Raises:
        FamilyError: there is no tokenizer, or it cannot be read.
    """
    if directory.is_dir():
        check_entries(directory)
        if not any(file.match(pattern) for file in directory.iterdir() for pattern in TOKENIZER_FILES):
            raise FamilyError(
                f"{directory}: no tokenizer; copy tokenizer.json and tokenizer_config.json from the model "
                "that it was made of"
            )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # neither transformers' nor tokenizers' refusals share a base class
        raise FamilyError(f"{directory}: its tokenizer cannot be read: {words_of(error)}") from None
    return tokenizer


def load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Loads a model as transformers does; safetensors only, no remote code.

    Raises:
        FamilyError: the directory holds no such model.
    """
    choose(directory)
    config = load_config(directory)
    try:
        model: PreTrainedModel = auto_class(config).from_pretrained(
            directory, config=config, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # neither transformers' nor tokenizers' refusals share a base class
        raise FamilyError(f"{directory}: cannot be loaded: {words_of(error)}") from None
    return model.to(device).eval().requires_grad_(False)


def member_digest(directory: Path) -> str:
    """Returns a digest of the weights in a directory: names, sizes and headers of its weight files."""
    entries = []
    for file in (directory / name for name in choose(directory).files):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = hashlib.sha256(stream.read(length)).hexdigest()
        entries.append([file.name, file.stat().st_size, header])
    return digest(entries)
