"""What is measured on a composed model: perplexity, and KL divergence to a reference.

An objective gives one value per predicted token or per item, so that an evaluation can stop early and
candidates can be compared one by one. Of most it is enough what a model predicts on batches, which
candidates share work for; some need the whole model, to generate or to be weighed. A new one is a
class, and a kind in config that search.measuring makes it of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import Batch, Segment
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.objectives.scores import Score


class Prediction(NamedTuple):
    """What a model predicts on rows of one set.

    Attributes:
        segment: which rows.
        next_ids: the tokens to predict [sequences, positions]; of items the tokens asked for [asked].
        logits: float32 [sequences, positions, vocabulary]; of items [places, vocabulary].
        log_normalizer: log Σ exp of the logits [sequences, positions]; of items [places].
        at: of items: the place that predicts each token asked for [asked].
    """

    segment: Segment
    next_ids: torch.Tensor
    logits: torch.Tensor
    log_normalizer: torch.Tensor
    at: torch.Tensor | None = None

    @staticmethod
    def of(segment: Segment, next_ids: torch.Tensor, logits: torch.Tensor) -> Prediction:
        """With what all objectives need, computed once."""
        wide = logits.float()
        return Prediction(segment, next_ids, wide, wide.logsumexp(-1))


Forward = Callable[[Batch], Iterator[Prediction]]
"""What a model predicts on a batch, see passes.predictions."""


class _Scoring(Protocol):
    """What all objectives have in common."""

    @property
    def name(self) -> str:
        """Unique within a run, e.g. `kl` or `acc`."""

    @property
    def direction(self) -> str:
        """ "minimize" or "maximize", of the natural value."""

    @property
    def fingerprint(self) -> str:
        """A digest of all that the score depends on besides the model."""

    def size(self, set_name: str, units: int) -> float:
        """The count that the sum of the first so many units is divided by."""

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """Of a set's first units."""


class PredictionObjective(_Scoring, Protocol):
    """A number to minimise, measured on what a model predicts, set by set."""

    @property
    def sets(self) -> tuple[TokenSet, ...]:
        """The token sequences that it is measured on."""

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        """What is kept of a prediction on some of a set's rows, float32, of any shape."""

    def units(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        """One number per predicted token or item; lower is better.

        Args:
            values: those of whole items, flat, in the order of the rows.
            rows: of the set, each once.
        """


@dataclass(frozen=True)
class UnitSet:
    """What a whole model is measured on, one by one: items, prompts, or the model itself.

    Attributes:
        name: what the user calls it.
        digest: of the content.
        units: how many there are.
        documents: their texts, white space evened out.
        batch: so many take little more time together than one alone.
    """

    name: str
    digest: str
    units: int
    documents: frozenset[str] = frozenset()
    batch: int = 1

    def units_until(self, share: float) -> int:
        """How many units this share is, rounded up to whole batches."""
        return min(self.units, math.ceil(share * self.units / self.batch) * self.batch)


@runtime_checkable
class ModelObjective(_Scoring, Protocol):
    """A number to minimise, measured on a whole model, set by set."""

    @property
    def sets(self) -> tuple[UnitSet, ...]:
        """What it is measured on."""

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        """One number for each of a set's units from `first` to `stop`; lower is better."""


Objective = PredictionObjective | ModelObjective


class PerUnit:
    """What objectives share whose score is the mean of their units."""

    unit = "plain"

    def size(self, set_name: str, units: int) -> float:
        """All units count alike."""
        return units

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """The mean."""
        return Score(float(units.mean()), len(units), self.unit)


class PerToken(PerUnit):
    """What objectives share that give a value per predicted token of a text."""

    unit = "nats"

    def units(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        """The values: texts are scored in their order."""
        return values


def log_likelihood(prediction: Prediction) -> torch.Tensor:
    """log p(token asked for), nats, of the shape of `next_ids`."""
    if prediction.at is not None:
        of_asked = prediction.logits[prediction.at, prediction.next_ids]
        return of_asked - prediction.log_normalizer[prediction.at]
    of_next = prediction.logits.gather(-1, prediction.next_ids[..., None])[..., 0]
    return of_next - prediction.log_normalizer
