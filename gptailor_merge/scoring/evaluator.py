"""A generation of plans becomes scores. Failures are results, too."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.memory import free, is_out_of_memory
from gptailor_merge.composing.prefixes import PrefixWalk, State, advance, common, levels, path_of, trie_order
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.passes import Measured, Passes, Values, extend, predictions
from gptailor_merge.scoring.racing import Race, Units


@dataclass(frozen=True)
class Outcome:
    """What became of one plan.

    Attributes:
        scores: objective -> set -> score, over the tokens that were scored; empty for a failure.
        cause: why it failed, or None.
        seconds: time spent on it; work that is shared counts for the first that needed it.
        tokens: tokens that it was scored on.
        units: of a candidate scored on everything in a race, for later races.
        estimate: of a candidate that a race dropped: its loss, as far as it can be told.
        measured: the units behind the scores.
    """

    scores: Scores
    cause: str | None
    seconds: float
    tokens: int
    units: Units | None = None
    estimate: float | None = None
    measured: Measured = field(default_factory=dict)


class Evaluator:
    """Scores plans, a generation together, rung by rung.

    Outer loop: batches. Inner: the plans along the trie of their slots, so that each distinct
    prefix is computed once per batch. The scores are those of scoring one by one. A batch that
    memory does not hold is scored in halves. What takes whole models is measured at the end of a
    rung, one model after the other.

    Attributes:
        composer: makes the models.
        passes: what they are measured on.
        layer_tokens: tokens times layers that were computed so far, but for those of whole models.
        seconds: spent so far on composing, forward (the layers), head (and objectives), whole models,
            bookkeeping.
    """

    def __init__(self, composer: Composer, passes: Passes) -> None:
        self.passes = passes
        self.layer_tokens = 0
        self.seconds = dict.fromkeys(("composing", "forward", "head", "whole", "bookkeeping"), 0.0)
        self.composer = composer
        self._device = composer.device
        self._most_sequences: int | None = None

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> list[Outcome]:
        """The outcomes in the order of the plans.

        Args:
            race: drops plans that cannot win before they are scored on everything; None scores all.
        """
        with self._clock("bookkeeping"):
            candidates = [_Candidate(plan, self.passes.nothing_measured()) for plan in plans]
            order = [candidates[position] for position in trie_order([c.path for c in candidates])]
        for number in range(len(self.passes.rungs)):
            self._score_rung(number, order)
            if race is not None and number + 1 < len(self.passes.rungs):
                with self._clock("bookkeeping"):
                    running = [c for c in candidates if c.runs]
                    hopeless = race.hopeless([self._units(c, race) for c in running], self.passes.totals)
                    for candidate, leaves in zip(running, hopeless, strict=True):
                        candidate.dropped = leaves
        with self._clock("bookkeeping"):
            return self._outcomes(candidates, race)

    def _outcomes(self, candidates: Sequence[_Candidate], race: Race | None) -> list[Outcome]:
        if race is None:
            return [candidate.outcome(self.passes, None, None) for candidate in candidates]
        units = {n: self._units(c, race) for n, c in enumerate(candidates) if c.cause is None}
        finished = {n: u for n, u in units.items() if not candidates[n].dropped}
        dropped = {n: u for n, u in units.items() if candidates[n].dropped}
        estimates = race.estimates(list(finished.values()), dropped, self.passes.totals)
        return [c.outcome(self.passes, finished.get(n), estimates.get(n)) for n, c in enumerate(candidates)]

    def _units(self, candidate: _Candidate, race: Race) -> Units:
        return self.passes.units(candidate.measured, race.weights)

    def _score_rung(self, number: int, order: Sequence[_Candidate]) -> None:
        found: dict[_Candidate, Values] = {candidate: {} for candidate in order}
        for batch in self.passes.rungs[number]:
            candidates = [candidate for candidate in order if candidate.runs]
            for candidate, values in self._score_batch(batch, candidates):
                extend(found[candidate], values)
            for candidate in candidates:
                candidate.tokens += batch.ids.numel()
        with self._clock("bookkeeping"):
            for candidate in order:
                if candidate.runs:
                    with candidate.attempt():
                        self.passes.finish(number, found[candidate], candidate.measured)
        if self.passes.takes_models(number):
            for candidate in order:
                if candidate.runs:
                    self._score_model(number, candidate)

    def _score_model(self, number: int, candidate: _Candidate) -> None:
        with candidate.attempt():
            with self._clock("composing"):
                model = self.composer.compose(candidate.plan)
            with self._clock("whole"):
                self.passes.measure_model(number, model, candidate.measured)
        if candidate.cause is not None:
            free(self._device)  # it may be that memory ran out

    def _score_batch(self, batch: Batch, candidates: Sequence[_Candidate]) -> list[tuple[_Candidate, Values]]:
        """The values of a batch for each candidate that did not fail."""
        if self._most_sequences is None or len(batch.ids) <= self._most_sequences:
            try:
                walk = self._by_levels if self.composer.streams else self._by_paths
                return list(walk(batch, candidates))
            except _OutOfMemoryError:
                self._most_sequences = max(1, len(batch.ids) // 2)
            free(self._device)
        first, second = batch.halves()
        found = self._score_batch(first, candidates)
        return [*found, *self._score_batch(second, [c for c in candidates if c.runs])]

    def _by_paths(
        self, batch: Batch, candidates: Sequence[_Candidate]
    ) -> Iterator[tuple[_Candidate, Values]]:
        walk = PrefixWalk(batch.ids, batch.branches)
        for candidate, after in zip_longest(candidates, candidates[1:]):
            with candidate.attempt(batch):
                with self._clock("composing"):
                    model = self.composer.compose(candidate.plan)
                with self._clock("forward"):
                    keep = common(candidate.path, after.path) if after else 0
                    state = walk.run(model, candidate.path, keep)
                with self._clock("head"):
                    values = self.passes.measure(predictions(model, batch, state))
                yield candidate, values
        self.layer_tokens += walk.layers_run * batch.ids.numel()

    def _by_levels(
        self, batch: Batch, candidates: Sequence[_Candidate]
    ) -> Iterator[tuple[_Candidate, Values]]:
        def step(position: int, depth: int, before: State) -> State:
            candidate = candidates[position]
            with candidate.attempt(batch):
                with self._clock("composing"):
                    model = self.composer.compose(candidate.plan, only=(depth,))
                with self._clock("forward"):
                    layers = range(depth, depth + 1)
                    (after,) = advance(model, batch.ids, before, layers, {depth}, batch.branches)
                self.layer_tokens += batch.ids.numel()
                return after
            for other in candidates:
                if other.path[: depth + 1] == candidate.path[: depth + 1]:
                    other.cause = candidate.cause
            return None

        for position, state in levels([c.path for c in candidates], step):
            candidate = candidates[position]
            with candidate.attempt(batch), self._clock("head"):
                model = self.composer.compose(candidate.plan, only=())
                values = self.passes.measure(predictions(model, batch, state))
                yield candidate, values

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[part] += time.perf_counter() - begun


class _OutOfMemoryError(Exception):
    """Memory ran out on a batch that can be halved."""


class _Candidate:
    """A plan on its way through a generation."""

    def __init__(self, plan: Plan, measured: Measured) -> None:
        self.plan = plan
        self.path = path_of(plan)
        self.measured = measured
        self.cause: str | None = None
        self.dropped = False
        self.seconds = 0.0
        self.tokens = 0

    @property
    def runs(self) -> bool:
        """Whether it is still to be scored."""
        return self.cause is None and not self.dropped

    @contextmanager
    def attempt(self, batch: Batch | None = None) -> Iterator[None]:
        """Time a step; what goes wrong in it is the candidate's failure, not the generation's."""
        begun = time.monotonic()
        try:
            yield
        except Exception as error:  # one bad candidate must not end a search of hours
            if batch is not None and len(batch.ids) > 1 and is_out_of_memory(error):
                raise _OutOfMemoryError from None
            self.cause = "".join(traceback.format_exception_only(error)).strip()
        self.seconds += time.monotonic() - begun

    def outcome(self, passes: Passes, units: Units | None, estimate: float | None) -> Outcome:
        """Scores, or the failure."""
        made = {} if self.cause else passes.scores(self.measured)
        cause = self.cause or _not_finite(made)
        if cause:
            return Outcome({}, cause, self.seconds, 0)
        return Outcome(made, None, self.seconds, self.tokens, units, estimate, self.measured)


def _not_finite(scores: Scores) -> str | None:
    for objective, by_set in scores.items():
        for name, score in by_set.items():
            if not math.isfinite(score.mean):
                return f"{objective} on {name} is {score.mean}, not a finite number"
    return None
