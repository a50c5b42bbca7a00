"""Dense models: loaded, told apart by their weights, and run as teachers."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor_merge.errors import FamilyError
from gptailor_merge.recipe.family import Family
from gptailor_merge.scoring.batching import Batch
from gptailor_merge.scoring.objectives import Forward, Prediction, digest
from gptailor_merge.scoring.passes import predictions_alone


def load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model as transformers loads it; safetensors only, no remote code.

    Raises:
        FamilyError: the directory holds no such model.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise FamilyError(f"{directory}: cannot be loaded: {first_line}") from None
    return model.to(device).eval().requires_grad_(False)


def member_digest(directory: Path) -> str:
    """Which weights a directory holds: names, sizes and content of its safetensors headers."""
    parts = []
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = hashlib.sha256(stream.read(length)).hexdigest()
        parts.append([file.name, file.stat().st_size, header])
    return digest(parts)


class Teachers:
    """Dense members, loaded when first asked; one at a time is in memory."""

    def __init__(self, family: Family, device: torch.device, dtype: torch.dtype) -> None:
        self.family, self.device, self._dtype = family, device, dtype
        self._loaded: tuple[str, PreTrainedModel] | None = None

    def get(self, name: str) -> tuple[str, Forward]:
        """(digest of the weights, forward pass); logits have the base's vocabulary."""
        member = self.family.by_name(name)
        assert member is not None
        vocabulary = int(self.family.base.config["vocab_size"])

        def run(batch: Batch) -> Iterator[Prediction]:
            yield from predictions_alone(self.model(name), batch, vocabulary=vocabulary)

        return f"{member.model} {member_digest(member.directory)}", run

    def model(self, name: str) -> PreTrainedModel:
        """The model itself."""
        if self._loaded is None or self._loaded[0] != name:
            member = self.family.by_name(name)
            assert member is not None
            self.release()
            self._loaded = (name, load_model(member.directory, self._dtype, self.device))
        return self._loaded[1]

    def release(self) -> None:
        """Free the memory."""
        self._loaded = None
        gc.collect()
