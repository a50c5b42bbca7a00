"""The kind `kl`: how far a model's predictions of texts are from those of a member of the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.digests import digest
from gptailor_merge.errors import KeyPath, Problem
from gptailor_merge.objectives.config_types import source_in_words
from gptailor_merge.objectives.kinds import Context
from gptailor_merge.objectives.protocols import Forward, PerToken, Prediction
from gptailor_merge.objectives.text_kinds import RecordedTextKeys, TextConfig


class KLConfig(TextConfig, RecordedTextKeys):
    """KL divergence from a teacher's predictions of texts."""

    kind: Literal["kl"]

    @model_validator(mode="after")
    def _teaches_known_data(self) -> KLConfig:
        unknown = set(self.teacher if isinstance(self.teacher, dict) else ()) - set(self.data)
        if unknown:
            raise ValueError(f"teacher names data that is not there, found {sorted(unknown)}")
        return self

    def teacher_of(self, name: str) -> str:
        """Returns the member that the model is compared with on the data of a name."""
        if isinstance(self.teacher, dict):
            return self.teacher.get(name, "base")
        return self.teacher or "base"

    def build(
        self, name: str, sets: tuple[TokenSet, ...], batches: Sequence[Batch], context: Context
    ) -> KullbackLeibler:
        """Runs the teachers over the batches and keeps what they predict."""
        teachers = {s.name: context.teacher(self.teacher_of(s.name)) for s in sets}
        return build_kl(name, sets, teachers=teachers, top_k=self.top_k, batches=batches)

    def sentence(self) -> str:
        """Names the texts, each with its teacher, and what is stored of the teachers."""
        data = ", ".join(
            f"{name} ({source_in_words(source)}, teacher {self.teacher_of(name)})"
            for name, source in self.data.items()
        )
        return (
            f"KL(teacher ‖ model) on {data}; {self.size_in_words()}; "
            f"the teacher's {self.top_k} likeliest tokens"
        )

    def problems(self, path: KeyPath, directory: Path, members: Sequence[str]) -> list[Problem]:
        """Returns a problem for each file that does not exist and each teacher that is no member."""
        problems = super().problems(path, directory, members)
        by_name = self.teacher if isinstance(self.teacher, dict) else {"": self.teacher or "base"}
        for name, teacher in by_name.items():
            if teacher not in members:
                message = f"no such member, found {teacher!r}; known are {', '.join(sorted(members))}"
                problems.append(Problem((*path, "teacher", *([name] if name else [])), message))
        return problems

    def comparable_on(self, set_name: str) -> tuple[str, str]:
        """Returns the kind and the teacher: divergences from two teachers are different things."""
        return self.kind, self.teacher_of(set_name)


@dataclass(frozen=True, eq=False)
class Reference:
    """The predictions of a reference model for the sequences of a set, in short.

    Attributes:
        indices: the k likeliest next tokens, int32 [sequences, length - 1, k].
        log_probabilities: of these tokens, float32, same shape.
    """

    indices: torch.Tensor
    log_probabilities: torch.Tensor
    _rows: dict[tuple[int, int], Reference] = field(default_factory=dict, repr=False)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """The probabilities of these tokens."""
        return self.log_probabilities.exp()

    @cached_property
    def log_rest(self) -> torch.Tensor:
        """The logarithm of the mass of all other tokens [sequences, length - 1]."""
        return _log_rest(self.log_probabilities)

    def rows(self, rows: Sequence[int]) -> Reference:
        """Returns the reference for sequences that are neighbours; it is remembered."""
        first, stop = rows[0], rows[-1] + 1
        if (first, stop) not in self._rows:
            part = Reference(self.indices[first:stop], self.log_probabilities[first:stop])
            self._rows[first, stop] = part
        return self._rows[first, stop]

    @staticmethod
    def concatenate(parts: Sequence[Reference]) -> Reference:
        """Joins references in their order."""
        indices = torch.cat([part.indices for part in parts])
        return Reference(indices, torch.cat([part.log_probabilities for part in parts]))


@dataclass(frozen=True)
class KullbackLeibler(PerToken):
    """KL(reference || model) of the next-token distributions, mean per token.

    The reference's `top_k` likeliest tokens are stored, and all others count as one outcome that holds the
    remaining mass: KL = Σ_{i≤k} p_i log(p_i/q_i) + p_rest log(p_rest/q_rest). By the log-sum inequality
    this is never more than the full KL; it misses the divergence within the rest,
    p_rest · KL(p|rest || q|rest). With top_k >= vocabulary it is exact.

    Attributes:
        teachers: set name -> digest of the reference model.
        references: set name -> its predictions for all sequences of the set.
    """

    name: str
    sets: tuple[TokenSet, ...]
    top_k: int
    teachers: Mapping[str, str]
    references: Mapping[str, Reference]
    direction: str = "minimize"

    @property
    def fingerprint(self) -> str:
        """Depends on the token sequences, the teachers' weights and `top_k`."""
        parts = [(s.name, s.digest, self.teachers[s.name]) for s in self.sets]
        return digest(["kl", self.top_k, parts])

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        """Returns the divergence at each position, nats [sequences, positions]."""
        return kl_divergence(self.references[set_name].rows(prediction.segment.rows), prediction)


def build_kl(
    name: str,
    sets: Sequence[TokenSet],
    *,
    teachers: Mapping[str, tuple[str, Forward]],
    top_k: int,
    batches: Sequence[Batch],
) -> KullbackLeibler:
    """Runs the reference models over the batches that hold their sets, one model after the other.

    Args:
        teachers: set name -> (digest of the reference model, its forward pass).
        top_k: how many of the likeliest tokens are stored for each position.
        batches: those that models will be scored on, so that a model has no divergence from itself.
    """
    digests = {s.name: teachers[s.name][0] for s in sets}
    by_row: dict[str, dict[int, Reference]] = {s.name: {} for s in sets}
    for teacher in dict.fromkeys(digests.values()):
        taught: dict[str, list[str]] = {}
        for token_set in sets:
            if digests[token_set.name] == teacher:
                taught.setdefault(token_set.digest, []).append(token_set.name)
        _, forward = teachers[next(iter(taught.values()))[0]]
        for batch in batches:
            if not any(segment.digest in taught for segment in batch.segments):
                continue
            for prediction in forward(batch):
                segment = prediction.segment
                if segment.digest in taught:
                    predicted = reference(prediction, top_k)
                    for set_name in taught[segment.digest]:
                        by_row[set_name][segment.rows[0]] = predicted
    references = {
        name: Reference.concatenate([parts[row] for row in sorted(parts)]) for name, parts in by_row.items()
    }
    return KullbackLeibler(name, tuple(sets), top_k, digests, references)


def reference(prediction: Prediction, top_k: int) -> Reference:
    """Returns the top_k likeliest next tokens and their log-probabilities."""
    vocabulary = prediction.log_probabilities.shape[-1]
    best = prediction.log_probabilities.topk(min(top_k, vocabulary), dim=-1)
    return Reference(best.indices.to(torch.int32), best.values)


def kl_divergence(reference: Reference, prediction: Prediction) -> torch.Tensor:
    """Returns KL(reference || model), nats [sequences, positions]; see KullbackLeibler for the formula."""
    log_q = prediction.log_probabilities.gather(-1, reference.indices.long())
    divergence = (reference.probabilities * (reference.log_probabilities - log_q)).sum(-1)
    if reference.indices.shape[-1] < prediction.log_probabilities.shape[-1]:
        divergence = divergence + reference.log_rest.exp() * (reference.log_rest - _log_rest(log_q))
    return divergence


def _log_rest(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Returns log(1 - Σ exp), not below the rounding of float32, where the difference means nothing."""
    mass = log_probabilities.exp().sum(-1)
    return torch.log((1 - mass).clamp_min(torch.finfo(torch.float32).eps))
