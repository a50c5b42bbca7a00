"""Scores plans on a device of this process; a failed plan is a result, too."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import NamedTuple

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.graphs import LayerGraphs
from gptailor_merge.composing.heap import HeapTrimmer
from gptailor_merge.composing.memory import free, is_out_of_memory, left
from gptailor_merge.composing.prefixes import PrefixWalk, State, advance, common, levels, path_of, trie_order
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.generation import RungResult, score_generation
from gptailor_merge.scoring.passes import Measured, Passes, Values, extend, predictions
from gptailor_merge.scoring.racing import Race
from gptailor_merge.scoring.stopwatch import Stopwatch

STATES_SHARE = 0.25
"""The share of the memory left that hidden states between two layers may take, where layers stream in."""


_Valued = tuple["_Runner", int, Values]
"""A plan, a rung, and what the plan has on a batch of it."""


class RungBatch(NamedTuple):
    """A batch, and the rung that it belongs to."""

    rung: int
    batch: Batch


class Evaluator:
    """Scores a generation of plans together, rung by rung.

    The outer loop runs over batches, the inner one over the plans along the trie of their slots, so that each
    distinct prefix is computed once per batch. The scores equal those of scoring one plan at a time. A batch
    that memory does not hold is scored in halves. Objectives that take whole models are measured after the
    batches, one model after the other.

    Attributes:
        composer: makes the models.
        passes: the objectives and the batches that they are measured on.
        layer_tokens: tokens times layers computed so far, without those of whole models.
        seconds: time spent so far on composing, forward (the layers), head (and objectives), whole models
            and bookkeeping.
    """

    def __init__(self, composer: Composer, passes: Passes, *, by_graphs: bool = True) -> None:
        """
        Args:
            by_graphs: whether small layers run as CUDA graphs, on a GPU.
        """
        self.composer = composer
        self.passes = passes
        self.layer_tokens = 0
        self.seconds = dict.fromkeys(("composing", "forward", "head", "whole", "bookkeeping"), 0.0)
        self._device = composer.device
        self._graphs = LayerGraphs() if by_graphs and composer.device.type == "cuda" else None
        self._stopwatch = Stopwatch(composer.device)
        self._most_sequences: int | None = None
        self._many_batches = True
        self._heap = HeapTrimmer()

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> list[Outcome]:
        """Scores the plans and returns their outcomes in order.

        Args:
            race: drops plans that cannot win before they are scored on everything; None scores all.
        """
        return score_generation(self, self.passes, plans, race)

    def score_rungs(self, rungs: range, plans: Sequence[Plan]) -> list[RungResult]:
        """Returns what the plans have on the batches of the rungs together, in their order.

        Nothing is kept between calls, so that another evaluator of the same job may score the next rungs.
        """
        with self._stopwatch.of("bookkeeping"):
            runners = [_Runner(plan, self.passes.nothing_measured()) for plan in plans]
            order = [runners[position] for position in trie_order([runner.path for runner in runners])]
        values_of: dict[tuple[_Runner, int], Values] = {(runner, r): {} for runner in order for r in rungs}
        batches = [RungBatch(rung, batch) for rung in rungs for batch in self.passes.rungs[rung]]
        for together in self._groups(batches, order):
            running = [runner for runner in order if runner.runs]
            for runner, rung, values in self._score_batches(together, running):
                extend(values_of[runner, rung], values)
            for runner in running:
                runner.tokens += sum(batch.ids.numel() for _, batch in together)
        for rung in rungs:
            with self._stopwatch.of("bookkeeping"):
                for runner in order:
                    if runner.runs:
                        with runner.attempt():
                            self.passes.finish(rung, values_of[runner, rung], runner.measured)
            if self.passes.takes_models(rung):
                for runner in order:
                    if runner.runs:
                        self._score_model(rung, runner)
        with self._stopwatch.of("bookkeeping"):
            self._heap.trim()
        self._stopwatch.read_into(self.seconds)
        return [runner.result for runner in runners]

    def _groups(
        self, batches: Sequence[RungBatch], runners: Sequence[_Runner]
    ) -> Iterator[Sequence[RungBatch]]:
        """Yields batches that are computed together: where layers arrive from the host, many at once."""
        most_tokens = 0.0
        if self.composer.streams and self._many_batches:
            states = 2 * max(1, len(runners))  # before a layer and after it
            most_tokens = STATES_SHARE * left(self._device) / (states * self.composer.state_bytes)
        together: list[RungBatch] = []
        for batch in batches:
            if together and sum(b.ids.numel() for _, b in (*together, batch)) > most_tokens:
                yield together
                together = []
            together.append(batch)
        if together:
            yield together

    def _score_model(self, rung: int, runner: _Runner) -> None:
        with runner.attempt():
            with self._stopwatch.of("composing"):
                model = self.composer.compose(runner.plan)
            with self._stopwatch.of("whole"):
                self.passes.measure_model(rung, model, runner.measured)
        if runner.cause is not None:
            free(self._device)  # the cause may be that memory ran out

    def _score_batches(self, batches: Sequence[RungBatch], runners: Sequence[_Runner]) -> list[_Valued]:
        """Returns the values of each batch for each runner that did not fail."""
        largest = max(len(batch.ids) for _, batch in batches)
        if self._most_sequences is None or largest <= self._most_sequences:
            try:
                walk = self._by_levels if self.composer.streams else self._by_paths
                return list(walk(batches, runners))
            except _OutOfMemoryError:
                if len(batches) > 1:
                    self._many_batches = False
                else:
                    self._most_sequences = max(1, largest // 2)
            free(self._device)
        smaller = [[batch] for batch in batches]
        if len(batches) == 1:
            ((rung, batch),) = batches
            smaller = [[RungBatch(rung, half)] for half in batch.halves()]
        valued: list[_Valued] = []
        for part in smaller:
            valued += self._score_batches(part, [runner for runner in runners if runner.runs])
        return valued

    def _by_paths(self, batches: Sequence[RungBatch], runners: Sequence[_Runner]) -> Iterator[_Valued]:
        for rung, batch in batches:
            walk = PrefixWalk(batch.ids, batch.branches, self._graphs)
            for runner, following in zip_longest(runners, runners[1:]):
                with runner.attempt(can_be_less=len(batch.ids) > 1):
                    with self._stopwatch.of("composing"):
                        model = self.composer.compose(runner.plan)
                    with self._stopwatch.of("forward"):
                        keep = common(runner.path, following.path) if following else 0
                        state = walk.run(model, runner.path, keep)
                    with self._stopwatch.of("head"):
                        values = self.passes.measure(predictions(model, batch, state))
                    yield runner, rung, values
            self.layer_tokens += walk.layers_run * batch.ids.numel()

    def _by_levels(self, batches: Sequence[RungBatch], runners: Sequence[_Runner]) -> Iterator[_Valued]:
        can_be_less = len(batches) > 1 or len(batches[0].batch.ids) > 1

        def step(position: int, depth: int, before: State) -> State:
            runner = runners[position]
            with runner.attempt(can_be_less=can_be_less):
                with self._stopwatch.of("composing"):
                    model = self.composer.compose(runner.plan, only=(depth,))
                after = []
                with self._stopwatch.of("forward"):
                    layers = range(depth, depth + 1)
                    for (_, batch), state in zip(batches, before or [None] * len(batches), strict=True):
                        after += advance(model, batch.ids, state, layers, {depth}, batch.branches)
                        self.layer_tokens += batch.ids.numel()
                return after
            for sharer in runners:
                if sharer.path[: depth + 1] == runner.path[: depth + 1]:
                    sharer.cause = runner.cause
            return None

        def ahead(position: int, depth: int) -> None:
            with suppress(Exception):  # it fails again where the layer is needed, and counts there
                self.composer.bank.fetch(runners[position].plan.adapted_slots[depth])

        for position, states in levels([runner.path for runner in runners], step, ahead):
            runner = runners[position]
            with runner.attempt(can_be_less=can_be_less), self._stopwatch.of("head"):
                model = self.composer.compose(runner.plan, only=())
                for (rung, batch), state in zip(batches, states, strict=True):
                    yield runner, rung, self.passes.measure(predictions(model, batch, state))


class _OutOfMemoryError(Exception):
    """Memory ran out where fewer sequences could go through the models together."""


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
    def attempt(self, *, can_be_less: bool = False) -> Iterator[None]:
        """Times a step; an error in it fails this plan and not the generation.

        Args:
            can_be_less: whether the step can be done with fewer sequences, if memory runs out.
        """
        begun = time.monotonic()
        try:
            yield
        except Exception as error:  # one bad plan must not end a search of hours
            if can_be_less and is_out_of_memory(error):
                raise _OutOfMemoryError from None
            self.cause = "".join(traceback.format_exception_only(error)).strip()
        self.seconds += time.monotonic() - begun
