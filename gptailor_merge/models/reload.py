"""Loads a written model as its users will, and reports tensors that are not in their places."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel

from gptailor_merge.models.auto_classes import loading_class
from gptailor_merge.models.configs import load_config
from gptailor_merge.models.stored_values import is_finite

_KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")


@dataclass(frozen=True)
class Reloaded:
    """A model that transformers loaded.

    Attributes:
        problems: sentences about missing, unexpected and mismatched tensors. transformers loads such a
            model all the same, with random values for missing tensors.
        extras: the names of stored tensors that are no part of the model and outside its layers, such as
            the value heads of training; transformers leaves them out.
    """

    model: PreTrainedModel
    problems: tuple[str, ...]
    extras: tuple[str, ...] = ()


def reload(directory: Path) -> Reloaded:
    """Loads a model directory from safetensors, without remote code, in its own dtype.

    Raises:
        Exception: transformers refuses the model; its errors have no common base.
    """
    config = load_config(directory)
    model, report = loading_class(config).from_pretrained(
        directory,
        config=config,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        # Otherwise the first tensor of a wrong shape is an error that hides all others.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    names = {kind: sorted(map(str, report[kind])) for kind in _KINDS}
    lists = {_list_of(name) for name in model.state_dict()} - {None}
    # A tensor of a layer that the config does not describe makes the layer another one.
    extras = [name for name in names["unexpected_keys"] if _list_of(name) not in lists]
    names["unexpected_keys"] = [name for name in names["unexpected_keys"] if name not in extras]
    problems = tuple(f"reloading finds {kind}: {names[kind]}" for kind in _KINDS if names[kind])
    return Reloaded(model, problems, tuple(extras))


def _list_of(name: str) -> str | None:
    """Returns the part of a tensor's name before the index of its layer, or None if it is in no list."""
    match = re.match(r"(.*?\.)\d+\.", name)
    return match[1] if match else None


def not_finite(files: Iterable[Path]) -> str | None:
    """Returns the name of the first tensor in safetensors files that holds infinities or NaN, or None."""
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not iterable itself
                if not is_finite(tensors.get_tensor(name)):
                    return str(name)
    return None
