"""Loads a written model as its users will, and reports tensors that are not in their places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor_merge.models.stored_values import is_finite

_KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")


@dataclass(frozen=True)
class Reloaded:
    """A model that transformers loaded.

    Attributes:
        problems: sentences about missing, unexpected and mismatched tensors. transformers loads such a
            model all the same, with random values for missing tensors.
    """

    model: PreTrainedModel
    problems: tuple[str, ...]


def reload(directory: Path) -> Reloaded:
    """Loads a model directory from safetensors, without remote code, in its own dtype.

    Raises:
        Exception: transformers refuses the model; its errors have no common base.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        # Otherwise the first tensor of a wrong shape is an error that hides all others.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return Reloaded(
        model,
        tuple(f"reloading finds {kind}: {sorted(map(str, report[kind]))}" for kind in _KINDS if report[kind]),
    )


def not_finite(files: Iterable[Path]) -> str | None:
    """Returns the name of the first tensor in safetensors files that holds infinities or NaN, or None."""
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not iterable itself
                if not is_finite(tensors.get_tensor(name)):
                    return str(name)
    return None
