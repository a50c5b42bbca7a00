"""What is measured on a composed model: perplexity, and KL divergence to a reference.

An objective gives one value per predicted token or per item, so that an evaluation can stop early and
candidates can be compared one by one. Of most it is enough what a model predicts on batches, which
candidates share work for; some need the whole model, to generate or to be weighed. A new one is a
class, and a kind in config that search.measuring makes it of.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gptailor_merge.scoring.batching import Batch, Segment
from gptailor_merge.scoring.calibration import TokenSet


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

Weights = Mapping[str, float]
"""Objective name -> its weight in the loss."""


UNITS: Mapping[str, Callable[[float], float]] = {
    **dict.fromkeys(("plain", "nats", "count", "bytes", "ms"), lambda mean: mean),
    "perplexity": lambda mean: math.exp(mean) if mean < 700 else math.inf,
    "bits": lambda mean: mean / math.log(2),
    "negated": lambda mean: -mean,
}
"""How users see a mean that is minimised: as it is, as its exponential, in bits, with the other sign."""
COSTS = ("count", "bytes", "ms")
"""Units of what a model costs."""


@dataclass(frozen=True)
class Score:
    """A mean that is minimised.

    Attributes:
        mean: in nats, or of whatever an objective counts.
        count: what it is a mean over: predicted tokens, items, words.
        unit: how users see it, see UNITS.
        error: the standard error of the mean, where it was estimated; no part of the score's identity.
    """

    mean: float
    count: float
    unit: str = "nats"
    error: float | None = field(default=None, compare=False)

    @property
    def natural(self) -> float:
        """As users see it."""
        return UNITS[self.unit](self.mean)

    @property
    def natural_error(self) -> float | None:
        """The standard error as users see it: half the distance between mean - error and mean + error."""
        if self.error is None:
            return None
        natural = UNITS[self.unit]
        return abs(natural(self.mean + self.error) - natural(self.mean - self.error)) / 2

    @staticmethod
    def total(scores: Sequence[Score]) -> Score:
        """The mean over all that several scores of one objective are means of.

        Its standard error is that of a stratified sample: the scores are independent of each other.
        """
        count = sum(score.count for score in scores)
        errors = [score.error * score.count for score in scores if score.error is not None]
        error = math.hypot(*errors) / count if len(errors) == len(scores) else None
        return Score(sum(s.mean * s.count for s in scores) / count, count, scores[0].unit, error)


Scores = Mapping[str, Mapping[str, Score]]
"""Objective name -> set name -> score."""


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


@dataclass(frozen=True, eq=False)
class Reference:
    """What a reference model predicts for the sequences of a set, compactly.

    Attributes:
        indices: the k likeliest next tokens, int32 [sequences, length - 1, k].
        log_probabilities: theirs, float32, same shape.
    """

    indices: torch.Tensor
    log_probabilities: torch.Tensor

    def rows(self, rows: Sequence[int]) -> Reference:
        """Some of its sequences, neighbours."""
        wanted = slice(rows[0], rows[-1] + 1)
        return Reference(self.indices[wanted], self.log_probabilities[wanted])

    @staticmethod
    def concatenate(parts: Sequence[Reference]) -> Reference:
        """One reference of several, in order."""
        indices = torch.cat([part.indices for part in parts])
        return Reference(indices, torch.cat([part.log_probabilities for part in parts]))


@dataclass(frozen=True)
class KullbackLeibler(PerToken):
    """KL(reference || model) of the next-token distributions, mean per token.

    Of the reference its `top_k` likeliest tokens are stored, and all others count as one outcome
    that holds the remaining mass: KL = Σ_{i≤k} p_i log(p_i/q_i) + p_rest log(p_rest/q_rest). By
    the log-sum inequality this is never more than the full KL; it misses the divergence within
    the rest, p_rest · KL(p|rest || q|rest). With top_k >= vocabulary it is exact.

    Attributes:
        references: set name -> Reference of all its sequences.
        teachers: set name -> digest of the model that it came from.
    """

    name: str
    sets: tuple[TokenSet, ...]
    top_k: int
    teachers: Mapping[str, str]
    references: Mapping[str, Reference]
    direction: str = "minimize"

    @property
    def fingerprint(self) -> str:
        parts = [(s.name, s.digest, self.teachers[s.name]) for s in self.sets]
        return digest(["kl", self.top_k, parts])

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        return kl_divergence(self.references[set_name].rows(prediction.segment.rows), prediction)


def build_kl(
    name: str,
    sets: Sequence[TokenSet],
    *,
    teachers: Mapping[str, tuple[str, Forward]],
    top_k: int,
    batches: Sequence[Batch],
) -> KullbackLeibler:
    """Run the references over the batches that hold their sets, one reference after the other.

    Args:
        teachers: set name -> (digest of the reference model, its forward pass).
        top_k: how many of the likeliest tokens are stored for each position.
        batches: the ones that models will be scored on, so that a model has no divergence from itself.
    """
    digests = {s.name: teachers[s.name][0] for s in sets}
    found: dict[str, dict[int, Reference]] = {s.name: {} for s in sets}
    for digest in dict.fromkeys(digests.values()):
        taught = {s.digest: s.name for s in sets if digests[s.name] == digest}
        _, forward = teachers[next(iter(taught.values()))]
        for batch in batches:
            if not any(segment.digest in taught for segment in batch.segments):
                continue
            for prediction in forward(batch):
                segment = prediction.segment
                if segment.digest in taught:
                    found[taught[segment.digest]][segment.rows[0]] = reference(prediction, top_k)
    references = {
        name: Reference.concatenate([parts[row] for row in sorted(parts)]) for name, parts in found.items()
    }
    return KullbackLeibler(name, tuple(sets), top_k, digests, references)


def log_likelihood(prediction: Prediction) -> torch.Tensor:
    """log p(token asked for), nats, of the shape of `next_ids`."""
    if prediction.at is not None:
        of_asked = prediction.logits[prediction.at, prediction.next_ids]
        return of_asked - prediction.log_normalizer[prediction.at]
    of_next = prediction.logits.gather(-1, prediction.next_ids[..., None])[..., 0]
    return of_next - prediction.log_normalizer


def reference(prediction: Prediction, top_k: int) -> Reference:
    """The top_k likeliest next tokens and their log-probabilities."""
    logits = prediction.logits
    best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    return Reference(best.indices.to(torch.int32), best.values - prediction.log_normalizer[..., None])


def kl_divergence(reference: Reference, prediction: Prediction) -> torch.Tensor:
    """KL(reference || model), nats [sequences, positions]; see KullbackLeibler for the formula."""
    logits = prediction.logits
    # Log-probabilities of the reference's tokens alone: a log-softmax would write the vocabulary again.
    log_q = logits.gather(-1, reference.indices.long()) - prediction.log_normalizer[..., None]
    log_p = reference.log_probabilities
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    if reference.indices.shape[-1] < logits.shape[-1]:
        log_p_rest, log_q_rest = _log_rest(log_p), _log_rest(log_q)
        divergence = divergence + log_p_rest.exp() * (log_p_rest - log_q_rest)
    return divergence


def _log_rest(log_probabilities: torch.Tensor) -> torch.Tensor:
    """log(1 - Σ exp), not below the rounding of float32, where the difference has no meaning."""
    mass = log_probabilities.exp().sum(-1)
    return torch.log((1 - mass).clamp_min(torch.finfo(torch.float32).eps))


def digest(value: object) -> str:
    """Short, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
