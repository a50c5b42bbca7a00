"""A generation of plans becomes scores. Failures are results, too."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from gptailor_merge.composing.compose import Composer
from gptailor_merge.recipe.operations import Plan
from gptailor_merge.scoring.objectives import Objective, Score, batches

Scores = Mapping[str, Mapping[str, Score]]
"""objective -> set name -> score."""


@dataclass(frozen=True)
class Outcome:
    """What became of one plan.

    Attributes:
        scores: objective -> set -> score; empty for a failure.
        cause: why it failed, or None.
        seconds: time spent on it.
        tokens: tokens that went through the model.
    """

    scores: Scores
    cause: str | None
    seconds: float
    tokens: int


class Evaluator:
    """Scores plans on fixed batches.

    Args:
        batch_tokens: about so many tokens go through the model at once; the references of the
            objectives were made with the same number.
    """

    def __init__(
        self,
        composer: Composer,
        objectives: Sequence[Objective],
        *,
        device: torch.device,
        batch_tokens: int,
    ) -> None:
        self._composer = composer
        self.objectives = Batched(objectives, device=device, batch_tokens=batch_tokens)

    def score(self, plans: Iterable[Plan]) -> Iterator[Outcome]:
        """The outcomes in the order of the plans, each as soon as it is known."""
        for plan in plans:
            begun = time.monotonic()
            scores: Scores = {}
            try:
                scores = self.objectives.score(self._composer.compose(plan))
                cause = _not_finite(scores)
            except Exception as error:  # one bad candidate must not end a search of hours
                cause = "".join(traceback.format_exception_only(error)).strip()
            tokens = 0 if cause else self.objectives.tokens
            yield Outcome({} if cause else scores, cause, time.monotonic() - begun, tokens)


class Batched:
    """Objectives with their batches on the device."""

    def __init__(self, objectives: Sequence[Objective], *, device: torch.device, batch_tokens: int) -> None:
        self._objectives = objectives
        self._batches = [
            (digest, index, ids.to(device)) for digest, index, ids in batches(objectives, batch_tokens)
        ]

    @property
    def tokens(self) -> int:
        """Tokens that go through a model to score it once."""
        return sum(ids.numel() for _, _, ids in self._batches)

    def score(self, model: PreTrainedModel) -> Scores:
        """Score a model, composed or loaded, that has the family's vocabulary."""
        sums: dict[tuple[str, str], float] = {}
        for digest, index, ids in self._batches:
            logits = forward(model, ids)
            for objective in self._objectives:
                for token_set in objective.sets:
                    if token_set.digest == digest:
                        key = (objective.name, token_set.name)
                        value = objective.score_batch(token_set.name, index, ids, logits)
                        sums[key] = sums.get(key, 0.0) + value
        return {
            objective.name: {
                s.name: Score(sums[objective.name, s.name] / s.scored_tokens, s.scored_tokens)
                for s in objective.sets
            }
            for objective in self._objectives
        }


def forward(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits [sequences, length, vocabulary] of token ids [sequences, length]."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _not_finite(scores: Scores) -> str | None:
    for objective, by_set in scores.items():
        for name, score in by_set.items():
            if not math.isfinite(score.mean):
                return f"{objective} on {name} is {score.mean}, not a finite number"
    return None
