"""Writes models that are small enough for tests: a few random layers and a tokenizer of single characters."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gptailor_merge.files import staging

VOCABULARY = 64
"""The characters of ASCII from the space to the underscore."""


DEPTH = 5


def write_member(
    directory: Path,
    seed: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = False,
    vocabulary: int = VOCABULARY,
    depth: int = DEPTH,
    width: int = 16,
) -> Path:
    """Writes a random Llama with a tokenizer of single characters, from space to underscore.

    Args:
        directory: is made where it does not exist.
        seed: of the weights.
        tied: True makes the embeddings the head, too.
        vocabulary: rows of the embeddings.
        depth: layers.
        width: of the hidden states.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """Writes a tokenizer of single characters, from space to underscore."""
    characters = {chr(32 + code): code for code in range(VOCABULARY)}
    core = Tokenizer(models.WordLevel(characters, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token=" ", eos_token=" ").save_pretrained(directory)


def write_family(root: Path) -> dict[str, str]:
    """Writes a family of three members, unless it exists; returns name -> directory."""
    names = ("base", "math", "code")
    if not root.exists():
        with staging(root) as directory:
            for seed, name in enumerate(names):
                write_member(directory / name, seed)
    return {name: str(root / name) for name in names}
