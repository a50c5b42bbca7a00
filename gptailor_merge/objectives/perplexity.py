"""Perplexity of texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.digests import digest
from gptailor_merge.objectives.protocols import PerToken, Prediction, log_likelihood


@dataclass(frozen=True)
class Perplexity(PerToken):
    """exp of the mean negative log-likelihood of the next token."""

    name: str
    sets: tuple[TokenSet, ...]
    direction: str = "minimize"
    unit = "perplexity"

    @property
    def fingerprint(self) -> str:
        return digest(["perplexity", [(s.name, s.digest) for s in self.sets]])

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        return -log_likelihood(prediction)
