"""The kind `perplexity`: how well a model predicts texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import model_validator

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.digests import digest
from gptailor_merge.objectives.kinds import Context
from gptailor_merge.objectives.protocols import PerToken, Prediction, log_likelihood
from gptailor_merge.objectives.text_kinds import RecordedTextKeys, TextConfig


class PerplexityConfig(TextConfig, RecordedTextKeys):
    """Perplexity of texts; `teacher` is refused, and `top_k` means nothing here."""

    kind: Literal["perplexity"]

    @model_validator(mode="after")
    def _has_no_teacher(self) -> PerplexityConfig:
        if self.teacher is not None:
            raise ValueError(f"only kl takes a teacher, found kind: {self.kind}")
        return self

    def build(
        self, name: str, sets: tuple[TokenSet, ...], batches: Sequence[Batch], context: Context
    ) -> Perplexity:
        """Makes the objective; it depends on nothing but the sets."""
        return Perplexity(name, sets)

    def sentence(self) -> str:
        """Names the texts and how much of them is taken."""
        return f"perplexity on {self.data_in_words()}; {self.size_in_words()}"


@dataclass(frozen=True)
class Perplexity(PerToken):
    """exp of the mean negative log-likelihood of the next token."""

    name: str
    sets: tuple[TokenSet, ...]
    direction: str = "minimize"
    unit = "perplexity"

    @property
    def fingerprint(self) -> str:
        """Depends on the token sequences and their names."""
        return digest(["perplexity", [(s.name, s.digest) for s in self.sets]])

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        """Returns the negative log-likelihood of each next token, nats [sequences, positions]."""
        return -log_likelihood(prediction)
