"""Loads dense models and their tokenizers; safetensors only, no remote code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_bitsandbytes_available

from gptailor_merge.digests import digest
from gptailor_merge.errors import ConfigError, FamilyError
from gptailor_merge.models.auto_classes import auto_class
from gptailor_merge.models.chosen_weights import choose
from gptailor_merge.models.configs import load_config
from gptailor_merge.models.devices import FREE_SHARE
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


def load_model(
    directory: Path, dtype: torch.dtype, device: torch.device, *, in_8bit: bool = False
) -> PreTrainedModel:
    """Loads a model as transformers does; safetensors only, no remote code.

    The layers that do not fit a GPU wait in the host's memory, or on the disk, and accelerate brings each to
    the GPU when it runs; the predictions are the same.

    Args:
        in_8bit: whether bitsandbytes holds the linear maps in 8 bits; see check_8bit.

    Raises:
        FamilyError: the directory holds no such model.
    """
    weights = [directory / name for name in choose(directory).files]
    config = load_config(directory)
    placed = _placed(sum(file.stat().st_size for file in weights), device, in_8bit)
    try:
        model: PreTrainedModel = auto_class(config).from_pretrained(
            directory, config=config, dtype=dtype, trust_remote_code=False, use_safetensors=True, **placed
        )
    except Exception as error:  # neither transformers' nor tokenizers' refusals share a base class
        raise FamilyError(f"{directory}: cannot be loaded: {words_of(error)}") from None
    return (model if placed else model.to(device)).eval().requires_grad_(False)


def _placed(size: int, device: torch.device, in_8bit: bool) -> dict[str, Any]:
    """Returns the settings by which transformers puts a model on its devices; none for a single one.

    Args:
        size: of the weights, in bytes.
    """
    index = device.index
    if device.type == "cuda" and index is None:
        index = torch.cuda.current_device()
    if in_8bit:
        on_device = {"": device.type if index is None else index}
        return {"device_map": on_device, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    if device.type != "cuda":
        return {}
    room = int(FREE_SHARE * torch.cuda.mem_get_info(device)[0])
    if size <= room:
        return {}
    return {
        "device_map": "auto",
        "max_memory": {index: room, "cpu": psutil.virtual_memory().available},
    }


def check_8bit(device: torch.device) -> None:
    """Checks that models can be loaded in 8 bits.

    Raises:
        ConfigError: bitsandbytes is not installed, or does not know the device.
    """
    if not is_bitsandbytes_available():
        raise ConfigError("8 bits need the package bitsandbytes; pip install 'gptailor-merge[bitsandbytes]'")
    from bitsandbytes import supported_torch_devices

    if device.type not in supported_torch_devices:
        known = ", ".join(sorted(supported_torch_devices))
        raise ConfigError(f"bitsandbytes does not run on {device.type}; expected one of {known}")


def member_digest(directory: Path) -> str:
    """Returns a digest of the weights in a directory: names, sizes and headers of its weight files."""
    entries = []
    for file in (directory / name for name in choose(directory).files):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = hashlib.sha256(stream.read(length)).hexdigest()
        entries.append([file.name, file.stat().st_size, header])
    return digest(entries)
