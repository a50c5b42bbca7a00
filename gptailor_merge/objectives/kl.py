"""KL divergence of a model's predictions from those of a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.digests import digest
from gptailor_merge.objectives.protocols import Forward, PerToken, Prediction


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
    for of_teacher in dict.fromkeys(digests.values()):
        taught = {s.digest: s.name for s in sets if digests[s.name] == of_teacher}
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
