"""The protocols of an objective, a number that is measured on a composed model.

An objective gives one value per predicted token or per item, so that an evaluation can stop early and
candidates can be compared unit by unit. For most objectives the predictions of a model on batches are
enough, and candidates share the work for these; some need the whole model, to generate or to be weighed.
How a config becomes an objective is a matter of its kind, see kinds.
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
    """The predictions of a model for rows of one set.

    Attributes:
        segment: says which rows they are.
        next_ids: the tokens to predict [sequences, positions]; for items the tokens asked for [asked].
        log_probabilities: of every token at every place, nats, float32 [sequences, positions, vocabulary];
            for items [places, vocabulary].
        at: for items, index of the place that predicts each token asked for [asked].
    """

    segment: Segment
    next_ids: torch.Tensor
    log_probabilities: torch.Tensor
    at: torch.Tensor | None = None

    @staticmethod
    def of(segment: Segment, next_ids: torch.Tensor, logits: torch.Tensor) -> Prediction:
        """Makes a prediction from a model's logits, of any dtype."""
        return Prediction(segment, next_ids, logits.log_softmax(-1, dtype=torch.float32))


Forward = Callable[[Batch], Iterator[Prediction]]
"""Gives the predictions of a model for a batch, see scoring.passes.predictions."""


class Watch(NamedTuple):
    """Someone who is told on the way to a prediction what some layers are given.

    Attributes:
        layers: in order; the first layer of a model is not among them.
        see: takes a batch and the layers' inputs, [sequences, length, width] each.
    """

    layers: Sequence[int]
    see: Callable[[Batch, Sequence[torch.Tensor]], None]


class TeacherForward(Protocol):
    """A forward pass of a teacher, that can be watched."""

    def __call__(self, batch: Batch, watch: Watch | None = None) -> Iterator[Prediction]:
        """Returns the predictions for a batch."""


class ScoredObjective(Protocol):
    """The part that all objectives have in common: a name, an identity, and how units become a score."""

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
        """Returns the count that the sum of a set's first `units` units is divided by."""

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """Returns the score of the first units of a set."""


class PredictionObjective(ScoredObjective, Protocol):
    """A number to minimise, measured on a model's predictions, set by set."""

    @property
    def sets(self) -> tuple[TokenSet, ...]:
        """The token sequences that models are run on."""

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        """Returns what is kept of a prediction for rows of a set, float32, of any shape."""

    def units(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        """Returns one number per predicted token or item; lower is better.

        Args:
            values: those of whole items, flat, in the order of the rows.
            rows: numbers of rows in the set, each once.
        """


@dataclass(frozen=True)
class UnitSet:
    """Units that a whole model is measured on: items, prompts, or the model itself.

    Attributes:
        name: the user's name for the set.
        digest: equal for equal content.
        units: how many there are.
        documents: texts of the units, white space evened out.
        batch: how many units take little more time together than one alone.
    """

    name: str
    digest: str
    units: int
    documents: frozenset[str] = frozenset()
    batch: int = 1

    @property
    def recorded_digest(self) -> str:
        """The digest that fingerprints hold."""
        return self.digest

    def units_until(self, share: float) -> int:
        """Returns how many units a share is, rounded up to whole batches."""
        return min(self.units, math.ceil(share * self.units / self.batch) * self.batch)


@runtime_checkable
class ModelObjective(ScoredObjective, Protocol):
    """A number to minimise, measured on a whole model, set by set."""

    @property
    def sets(self) -> tuple[UnitSet, ...]:
        """The units that models are measured on."""

    def measure(self, set_name: str, model: PreTrainedModel, first: int, stop: int) -> NDArray[np.float64]:
        """Returns one number for each unit of a set from `first` to `stop`; lower is better."""


Objective = PredictionObjective | ModelObjective


@runtime_checkable
class SlopedObjective(PredictionObjective, Protocol):
    """A number that changes smoothly with the values kept, though it is no mean of them."""

    def slopes(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        """Returns the derivative of the sum of the units by each value; takes what `units` takes."""


class PerUnit:
    """Gives an objective the mean of its units as its score; `unit` is one of scores.UNITS."""

    unit = "plain"

    def size(self, set_name: str, units: int) -> float:
        """Counts every unit alike."""
        return units

    def score(self, set_name: str, units: NDArray[np.float64]) -> Score:
        """Returns the mean."""
        return Score(float(units.mean()), len(units), self.unit)


class PerToken(PerUnit):
    """Makes the values of an objective on texts its units, one per predicted token."""

    unit = "nats"

    def units(self, set_name: str, values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
        """Returns the values: texts are scored in their order."""
        return values


def log_likelihood(prediction: Prediction) -> torch.Tensor:
    """Returns log p of each token to predict, nats, in the shape of `next_ids`."""
    if prediction.at is not None:
        return prediction.log_probabilities[prediction.at, prediction.next_ids]
    return prediction.log_probabilities.gather(-1, prediction.next_ids[..., None])[..., 0]
