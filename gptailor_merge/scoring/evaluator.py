"""Scores plans on a device of this process; a failed plan is a result, too."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest

import torch

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.heap import HeapTrimmer
from gptailor_merge.composing.memory import free, is_out_of_memory
from gptailor_merge.composing.prefixes import PrefixWalk, State, advance, common, levels, path_of, trie_order
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.generation import RungResult, score_generation
from gptailor_merge.scoring.passes import Measured, Passes, Values, extend, predictions
from gptailor_merge.scoring.racing import Race


class Evaluator:
    """Scores a generation of plans together, rung by rung.

    In a rung the outer loop runs over batches, the inner one over the plans along the trie of their slots,
    so that each distinct prefix is computed once per batch. The scores equal those of scoring one plan at a
    time. A batch that memory does not hold is scored in halves. Objectives that take whole models are
    measured at the end of a rung, one model after the other.

    Attributes:
        composer: makes the models.
        passes: the objectives and the batches that they are measured on.
        layer_tokens: tokens times layers computed so far, without those of whole models.
        seconds: time spent so far on composing, forward (the layers), head (and objectives), whole models
            and bookkeeping.
    """

    def __init__(self, composer: Composer, passes: Passes) -> None:
        self.composer = composer
        self.passes = passes
        self.layer_tokens = 0
        self.seconds = dict.fromkeys(("composing", "forward", "head", "whole", "bookkeeping"), 0.0)
        self._device = composer.device
        self._most_sequences: int | None = None
        self._heap = HeapTrimmer()

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> list[Outcome]:
        """Scores the plans and returns their outcomes in order.

        Args:
            race: drops plans that cannot win before they are scored on everything; None scores all.
        """
        return score_generation(self, self.passes, plans, race)

    def score_rung(self, rung: int, plans: Sequence[Plan]) -> list[RungResult]:
        """Returns what the plans have on the batches of a rung, in their order.

        Nothing is kept between rungs, so that another evaluator of the same job may score the next.
        """
        with self._clock("bookkeeping"):
            runners = [_Runner(plan, self.passes.nothing_measured()) for plan in plans]
            order = [runners[position] for position in trie_order([runner.path for runner in runners])]
        values_of: dict[_Runner, Values] = {runner: {} for runner in order}
        for batch in self.passes.rungs[rung]:
            running = [runner for runner in order if runner.runs]
            for runner, values in self._score_batch(batch, running):
                extend(values_of[runner], values)
            for runner in running:
                runner.tokens += batch.ids.numel()
        with self._clock("bookkeeping"):
            for runner in order:
                if runner.runs:
                    with runner.attempt():
                        self.passes.finish(rung, values_of[runner], runner.measured)
        if self.passes.takes_models(rung):
            for runner in order:
                if runner.runs:
                    self._score_model(rung, runner)
        with self._clock("bookkeeping"):
            self._heap.trim()
        return [runner.result for runner in runners]

    def _score_model(self, rung: int, runner: _Runner) -> None:
        with runner.attempt():
            with self._clock("composing"):
                model = self.composer.compose(runner.plan)
            with self._clock("whole"):
                self.passes.measure_model(rung, model, runner.measured)
        if runner.cause is not None:
            free(self._device)  # the cause may be that memory ran out

    def _score_batch(self, batch: Batch, runners: Sequence[_Runner]) -> list[tuple[_Runner, Values]]:
        """Returns the values of a batch for each runner that did not fail."""
        if self._most_sequences is None or len(batch.ids) <= self._most_sequences:
            try:
                walk = self._by_levels if self.composer.streams else self._by_paths
                return list(walk(batch, runners))
            except _OutOfMemoryError:
                self._most_sequences = max(1, len(batch.ids) // 2)
            free(self._device)
        first, second = batch.halves()
        scored = self._score_batch(first, runners)
        return [*scored, *self._score_batch(second, [runner for runner in runners if runner.runs])]

    def _by_paths(self, batch: Batch, runners: Sequence[_Runner]) -> Iterator[tuple[_Runner, Values]]:
        walk = PrefixWalk(batch.ids, batch.branches)
        for runner, following in zip_longest(runners, runners[1:]):
            with runner.attempt(batch):
                with self._clock("composing"):
                    model = self.composer.compose(runner.plan)
                with self._clock("forward"):
                    keep = common(runner.path, following.path) if following else 0
                    state = walk.run(model, runner.path, keep)
                with self._clock("head"):
                    values = self.passes.measure(predictions(model, batch, state))
                yield runner, values
        self.layer_tokens += walk.layers_run * batch.ids.numel()

    def _by_levels(self, batch: Batch, runners: Sequence[_Runner]) -> Iterator[tuple[_Runner, Values]]:
        def step(position: int, depth: int, before: State) -> State:
            runner = runners[position]
            with runner.attempt(batch):
                with self._clock("composing"):
                    model = self.composer.compose(runner.plan, only=(depth,))
                with self._clock("forward"):
                    layers = range(depth, depth + 1)
                    (after,) = advance(model, batch.ids, before, layers, {depth}, batch.branches)
                self.layer_tokens += batch.ids.numel()
                return after
            for sharer in runners:
                if sharer.path[: depth + 1] == runner.path[: depth + 1]:
                    sharer.cause = runner.cause
            return None

        def ahead(position: int, depth: int) -> None:
            with suppress(Exception):  # it fails again where the layer is needed, and counts there
                self.composer.bank.fetch(runners[position].plan.adapted_slots[depth])

        for position, state in levels([runner.path for runner in runners], step, ahead):
            runner = runners[position]
            with runner.attempt(batch), self._clock("head"):
                model = self.composer.compose(runner.plan, only=())
                values = self.passes.measure(predictions(model, batch, state))
                yield runner, values

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()  # the next layer may be on its way
            self.seconds[part] += time.perf_counter() - begun


class _OutOfMemoryError(Exception):
    """Memory ran out on a batch that can be halved."""


class _Runner:
    """A plan on its way through a rung."""

    def __init__(self, plan: Plan, measured: Measured) -> None:
        self.plan = plan
        self.path = path_of(plan)
        self.measured = measured
        self.cause: str | None = None
        self.seconds = 0.0
        self.tokens = 0

    @property
    def runs(self) -> bool:
        """Tells whether the plan is still to be scored."""
        return self.cause is None

    @property
    def result(self) -> RungResult:
        """Everything that the plan has on this rung."""
        return RungResult(self.measured, self.cause, self.seconds, self.tokens)

    @contextmanager
    def attempt(self, batch: Batch | None = None) -> Iterator[None]:
        """Times a step; an error in it fails this plan and not the generation."""
        begun = time.monotonic()
        try:
            yield
        except Exception as error:  # one bad plan must not end a search of hours
            if batch is not None and len(batch.ids) > 1 and is_out_of_memory(error):
                raise _OutOfMemoryError from None
            self.cause = "".join(traceback.format_exception_only(error)).strip()
        self.seconds += time.monotonic() - begun
