"""Reads the config of a model directory, and builds the model that it describes, without trusting it.

A config may name code to fetch (kernels for attention or experts, remote classes) or sizes that fill the
memory before anything is compared. No other module reads configs of members or builds models from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.auto_classes import auto_class
from gptailor_merge.models.remote_code import words_of
from gptailor_merge.models.stranger_files import check_entries, read_object

CONFIG = "config.json"


MOST = 65_536
"""The largest number of layers, experts, blocks or labels that is believed."""


_COUNTS = re.compile(r"(^|_)(layers?|experts?|blocks?|labels?|depth)$|^n_layers?$")
"""Keys for which transformers makes lists with an entry for each number below theirs."""


MODULES_PER_TENSOR = 8
"""Modules of a model for each of its tensors; real models have about one."""


_ELSEWHERE = "configuration_files"
"""The key of a config by which it names other files that are to be read in its place."""


def read_config(directory: Path) -> dict[str, Any]:
    """Returns the document in config.json, once its numbers can be believed.

    Raises:
        FamilyError: there is no config.json, it holds no JSON object, or it names an absurd number.
    """
    if not directory.is_dir():
        raise FamilyError(f"{directory}: no such directory; expected a transformers model directory")
    check_entries(directory)
    file = directory / CONFIG
    try:
        document = read_object(file)
    except FileNotFoundError:
        raise FamilyError(f"{directory}: no {CONFIG}; expected a transformers model directory") from None
    if _ELSEWHERE in document:
        raise FamilyError(f"{file}: {_ELSEWHERE} names other configs, which are not read; remove it")
    for key, number in _numbers(document):
        if _COUNTS.search(key) and number > MOST:
            raise FamilyError(f"{file}: {key} is {number:,}; no model has more than {MOST:,}")
    return document


def load_config(directory: Path) -> PreTrainedConfig:
    """Returns a model directory's config as transformers reads it, without what it says of kernels.

    Raises:
        FamilyError: see read_config; or transformers refuses it.
    """
    read_config(directory)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers' refusals share no base class
        raise FamilyError(f"{directory / CONFIG}: cannot be read: {words_of(error)}") from error
    return without_kernels(config)


def without_kernels(config: PreTrainedConfig) -> PreTrainedConfig:
    """Makes a config leave the choice of attention and experts to transformers, and returns it.

    transformers downloads and runs kernels of the Hub that a config names as its implementation.
    """
    config._attn_implementation = None  # both set those of the configs inside, too
    config._experts_implementation = None
    return config


def build(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """Builds the model of a config, on the device of the context.

    Raises:
        Exception: transformers cannot; a model's own code may raise anything.
    """
    model: PreTrainedModel = auto_class(config).from_config(
        without_kernels(config), trust_remote_code=False, **options
    )
    return model


@contextmanager
def bounded_modules(tensors: int) -> Iterator[None]:
    """Stops the building of models that have far more modules than a checkpoint has tensors.

    Args:
        tensors: their number, from the headers.

    Raises:
        FamilyError: the model in the block has more.
    """
    left = MODULES_PER_TENSOR * tensors + 4096

    def count(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            text = f"its config describes far more modules than the {tensors:,} stored tensors can fill"
            raise FamilyError(text)

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _numbers(document: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yields (key, number) of a config and the configs inside it."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield key, value
