"""What is measured on a composed model: perplexity, and KL divergence to a reference.

An objective scores one batch at a time, so that an evaluation can stop early. A new one is a class
here, and a kind in config.ObjectiveConfig that session.build makes it of.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gptailor_merge.scoring.calibration import TokenSet

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Token ids [sequences, length] -> logits [sequences, length, vocabulary]."""


@dataclass(frozen=True)
class Score:
    """A mean over predicted tokens, in nats."""

    mean: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the mean."""
        return math.exp(self.mean) if self.mean < 700 else math.inf

    @staticmethod
    def total(scores: Sequence[Score]) -> Score:
        """The mean over all tokens of several scores."""
        tokens = sum(score.tokens for score in scores)
        return Score(sum(s.mean * s.tokens for s in scores) / tokens, tokens)


class Objective(Protocol):
    """A number to minimise, measured on a composed model, file by file."""

    @property
    def name(self) -> str:
        """`kl` or `perplexity`, unique within a run."""

    @property
    def direction(self) -> str:
        """ "minimize" or "maximize", of the natural value."""

    @property
    def fingerprint(self) -> str:
        """A digest of all that the score depends on besides the model."""

    @property
    def sets(self) -> tuple[TokenSet, ...]:
        """The token sequences that it is measured on."""

    def score_batch(self, set_name: str, index: int, ids: torch.Tensor, logits: torch.Tensor) -> float:
        """The sum over the predicted tokens of batch `index` of a set; lower is better."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of the next token."""

    name: str
    sets: tuple[TokenSet, ...]
    direction: str = "minimize"

    @property
    def fingerprint(self) -> str:
        return _digest(["perplexity", [(s.name, s.digest) for s in self.sets]])

    def score_batch(self, set_name: str, index: int, ids: torch.Tensor, logits: torch.Tensor) -> float:
        return negative_log_likelihood(ids, logits)


@dataclass(frozen=True, eq=False)
class Reference:
    """What a reference model predicts for one batch, compactly.

    Attributes:
        indices: the k likeliest next tokens, int32 [sequences, length - 1, k].
        log_probabilities: theirs, float32, same shape.
    """

    indices: torch.Tensor
    log_probabilities: torch.Tensor


@dataclass(frozen=True)
class KullbackLeibler:
    """KL(reference || model) of the next-token distributions, mean per token.

    Of the reference its `top_k` likeliest tokens are stored, and all others count as one outcome
    that holds the remaining mass: KL = Σ_{i≤k} p_i log(p_i/q_i) + p_rest log(p_rest/q_rest). By
    the log-sum inequality this is never more than the full KL; it misses the divergence within
    the rest, p_rest · KL(p|rest || q|rest). With top_k >= vocabulary it is exact.

    Attributes:
        references: set name -> one Reference per batch of that set.
        teachers: set name -> digest of the model that it came from.
    """

    name: str
    sets: tuple[TokenSet, ...]
    top_k: int
    teachers: Mapping[str, str]
    references: Mapping[str, Sequence[Reference]]
    direction: str = "minimize"

    @property
    def fingerprint(self) -> str:
        parts = [(s.name, s.digest, self.teachers[s.name]) for s in self.sets]
        return _digest(["kl", self.top_k, parts])

    def score_batch(self, set_name: str, index: int, ids: torch.Tensor, logits: torch.Tensor) -> float:
        return kl_divergence(self.references[set_name][index], logits)


def build_kl(
    name: str,
    sets: Sequence[TokenSet],
    *,
    teachers: Mapping[str, tuple[str, Forward]],
    top_k: int,
    batch_tokens: int,
) -> KullbackLeibler:
    """Run the references over their sets.

    Args:
        teachers: set name -> (digest of the reference model, its forward pass).
        top_k: how many of the likeliest tokens are stored for each position.
    """
    references = {}
    for token_set in sets:
        _, forward = teachers[token_set.name]
        references[token_set.name] = [
            reference(forward(ids), top_k) for ids in token_set.batches(batch_tokens)
        ]
    digests = {s.name: teachers[s.name][0] for s in sets}
    return KullbackLeibler(name, tuple(sets), top_k, digests, references)


def negative_log_likelihood(ids: torch.Tensor, logits: torch.Tensor) -> float:
    """Sum of -log p(next token), nats, over ids [sequences, length] but the first of each."""
    predicted = logits[:, :-1].float()
    of_next = predicted.gather(-1, ids[:, 1:, None])[..., 0]
    return float((predicted.logsumexp(-1) - of_next).double().sum())


def reference(logits: torch.Tensor, top_k: int) -> Reference:
    """The top_k likeliest next tokens and their log-probabilities, from logits [n, length, vocabulary]."""
    predicted = logits[:, :-1].float()
    best = predicted.topk(min(top_k, predicted.shape[-1]), dim=-1)
    log_p = best.values - predicted.logsumexp(-1, keepdim=True)
    return Reference(best.indices.to(torch.int32), log_p)


def kl_divergence(reference: Reference, logits: torch.Tensor) -> float:
    """Sum over positions of KL(reference || model), nats; see KullbackLeibler for the formula."""
    predicted = logits[:, :-1].float()
    # Log-probabilities of the reference's tokens alone: a log-softmax would write the vocabulary again.
    log_q = predicted.gather(-1, reference.indices.long()) - predicted.logsumexp(-1, keepdim=True)
    log_p = reference.log_probabilities
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    if reference.indices.shape[-1] < logits.shape[-1]:
        log_p_rest, log_q_rest = _log_rest(log_p), _log_rest(log_q)
        divergence = divergence + log_p_rest.exp() * (log_p_rest - log_q_rest)
    return float(divergence.double().sum())


def _log_rest(log_probabilities: torch.Tensor) -> torch.Tensor:
    """log(1 - Σ exp), not below the rounding of float32, where the difference has no meaning."""
    mass = log_probabilities.exp().sum(-1)
    return torch.log((1 - mass).clamp_min(torch.finfo(torch.float32).eps))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def batches(objectives: Sequence[Objective], batch_tokens: int) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(digest of the set, index in it, ids) of every distinct batch that the objectives score."""
    seen = set()
    for objective in objectives:
        for token_set in objective.sets:
            if token_set.digest not in seen:
                seen.add(token_set.digest)
                for index, ids in enumerate(token_set.batches(batch_tokens)):
                    yield token_set.digest, index, ids
