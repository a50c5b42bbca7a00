"""A generation of plans becomes scores. Failures are results, too."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

import torch
from transformers import PreTrainedModel

from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import PrefixWalk, common, path_of, trie_order
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
    """Scores plans on fixed batches, a generation together.

    Outer loop: batches. Inner: the plans in the order of a trie over their slots, so that each
    distinct prefix is computed once per batch. The scores are those of scoring one by one.

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
        self.layer_tokens = 0
        """Tokens times layers that were computed so far."""

    def score(self, plans: Sequence[Plan]) -> Iterator[Outcome]:
        """The outcomes in the order of the plans."""
        candidates = [_Candidate(plan) for plan in plans]
        for candidate in candidates:
            with candidate.attempt():
                candidate.model = self._composer.compose(candidate.plan)
        order = [candidates[position] for position in trie_order([c.path for c in candidates])]
        for batch in self.objectives.batches:
            self._score_batch(batch, [c for c in order if c.cause is None])
        for candidate in candidates:
            yield candidate.outcome(self.objectives)

    def _score_batch(self, batch: Batch, candidates: Sequence[_Candidate]) -> None:
        walk = PrefixWalk(lambda model: forward(model, batch.ids))
        for candidate, after in zip_longest(candidates, candidates[1:]):
            with candidate.attempt():
                keep = common(candidate.path, after.path) if after else 0
                assert candidate.model is not None
                logits = walk.run(candidate.model, candidate.path, keep)
                self.objectives.add(candidate.sums, batch, logits)
        self.layer_tokens += walk.layers_run * batch.ids.numel()


Sums = dict[tuple[str, str], float]
"""(objective, set name) -> sum over the predicted tokens so far."""


@dataclass(frozen=True)
class Batch:
    """Token ids [sequences, length] on the device: batch `index` of the set with this digest."""

    digest: str
    index: int
    ids: torch.Tensor


class Batched:
    """Objectives with their batches on the device."""

    def __init__(self, objectives: Sequence[Objective], *, device: torch.device, batch_tokens: int) -> None:
        self.objectives = objectives
        self.batches = [
            Batch(d, index, ids.to(device)) for d, index, ids in batches(objectives, batch_tokens)
        ]

    @property
    def tokens(self) -> int:
        """Tokens that go through a model to score it once."""
        return sum(batch.ids.numel() for batch in self.batches)

    def add(self, sums: Sums, batch: Batch, logits: torch.Tensor) -> None:
        """Add what the objectives make of a model's logits on a batch."""
        for objective in self.objectives:
            for token_set in objective.sets:
                if token_set.digest == batch.digest:
                    key = (objective.name, token_set.name)
                    value = objective.score_batch(token_set.name, batch.index, batch.ids, logits)
                    sums[key] = sums.get(key, 0.0) + value

    def scores(self, sums: Sums) -> Scores:
        """The means, from the sums over all batches."""
        return {
            objective.name: {
                s.name: Score(sums[objective.name, s.name] / s.scored_tokens, s.scored_tokens)
                for s in objective.sets
            }
            for objective in self.objectives
        }

    def score(self, model: PreTrainedModel) -> Scores:
        """Score a single model, composed or loaded, that has the family's vocabulary."""
        sums: Sums = {}
        for batch in self.batches:
            self.add(sums, batch, forward(model, batch.ids))
        return self.scores(sums)


class _Candidate:
    """A plan on its way through a generation."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path = path_of(plan)
        self.model: PreTrainedModel | None = None
        self.sums: Sums = {}
        self.cause: str | None = None
        self.seconds = 0.0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Time a step; what goes wrong in it is the candidate's failure, not the generation's."""
        begun = time.monotonic()
        try:
            yield
        except Exception as error:  # one bad candidate must not end a search of hours
            self.cause = "".join(traceback.format_exception_only(error)).strip()
        self.seconds += time.monotonic() - begun

    def outcome(self, objectives: Batched) -> Outcome:
        """Scores, or the failure."""
        scores = {} if self.cause else objectives.scores(self.sums)
        cause = self.cause or _not_finite(scores)
        if cause:
            return Outcome({}, cause, self.seconds, 0)
        return Outcome(scores, None, self.seconds, objectives.tokens)


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
