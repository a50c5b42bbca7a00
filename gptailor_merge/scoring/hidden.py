"""What the layers of a model do to its hidden states: passes that measure layers instead of models.

They run on the texts of the calibration set, and where there are none on the rows of tasks' items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch.nn import functional

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.memory import BatchSize
from gptailor_merge.composing.prefixes import State, advance
from gptailor_merge.errors import ConfigError, ScoringError
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.evaluator import Outcome

INFLUENCE, DISTANCE, SIMILARITY = "block influence", "angular distance", "similarity"
"""What the passes call what they measure."""


Block = tuple[int, int]
"""Neighbouring layers [first, past the last)."""


class HiddenStates:
    """Measures on the states between the layers of a plan's model, one batch and one layer after the other.

    Memory is bounded by a few states [sequences, length, width]; a batch that does not fit is cut.
    """

    def __init__(self, composer: Composer, rungs: Sequence[Sequence[Batch]]) -> None:
        """
        Args:
            rungs: the batches of the calibration set, see passes.Passes.
        """
        self._composer = composer
        every = [batch for rung in rungs for batch in rung]
        texts = any(not batch.rows for batch in every)
        self._rungs = [[batch for batch in rung if not (texts and batch.rows)] for rung in rungs]
        self._sizes = BatchSize(max((len(batch.ids) for batch in every), default=1))
        self._reference: tuple[str, list[torch.Tensor]] | None = None

    def block_influence(self, plan: Plan) -> Outcome:
        """1 − cos of what goes into a layer and what it gives, mean over all tokens; layer -> score."""

        def cosines(batch: Batch) -> torch.Tensor:
            asked, found = _tokens(batch), []
            states = self._states(plan, batch)
            before = next(states)
            for after in states:
                alike = functional.cosine_similarity(before.float(), after.float(), dim=-1)
                found.append(alike[asked].cpu().double().sum())
                before = after
            return torch.stack([*found, asked.cpu().double().sum()])

        def scores(total: torch.Tensor) -> Mapping[str, Score]:
            *sums, count = total.tolist()
            return {str(layer): Score(1 - one / count, count, "plain") for layer, one in enumerate(sums)}

        return self._measured(INFLUENCE, self._batches, cosines, scores)

    def angular_distances(self, plan: Plan, lengths: Collection[int]) -> Outcome:
        """arccos / π of the cosine of what goes into a block of layers and what goes into the layer after
        it, at the last token of each sequence, mean over sequences; block -> score.

        Args:
            lengths: of the blocks.
        """
        depth = len(plan.slots)
        blocks = [(at, at + n) for n in sorted(lengths) for at in range(depth - n + 1)]

        def angles(batch: Batch) -> torch.Tensor:
            last = _last(batch)
            at = torch.arange(len(last), device=last.device), last
            states = [state[at].cpu().double() for state in self._states(plan, batch)]
            found = []
            for first, stop in blocks:
                cosine = functional.cosine_similarity(states[first], states[stop], dim=-1)
                found.append(cosine.clamp(-1, 1).arccos().sum() / torch.pi)
            return torch.stack([*found, torch.tensor(float(len(last)), dtype=torch.float64)])

        def scores(total: torch.Tensor) -> Mapping[str, Score]:
            *sums, count = total.tolist()
            named = zip(blocks, sums, strict=True)
            return {block_name(block): Score(one / count, count, "plain") for block, one in named}

        return self._measured(DISTANCE, self._batches, angles, scores)

    def similarity(self, plan: Plan, reference: Plan) -> Outcome:
        """Cosine of all that the last layer gives and what that of a reference gives, mean over the
        sequences of the first rung.

        Of the reference the states are kept, float32 [tokens, width]; its pass is the one of itself.
        """
        batches = next((rung for rung in self._rungs if rung), [])
        if self._reference is None or self._reference[0] != reference.digest:
            kept = [self._last_states(reference, batch) for batch in batches]
            self._reference = reference.digest, kept
        known = dict(zip(map(id, batches), self._reference[1], strict=True))

        def cosines(batch: Batch) -> torch.Tensor:
            theirs = known[id(batch)]
            ours = theirs if plan.digest == reference.digest else self._last_states(plan, batch)
            alike = functional.cosine_similarity(ours.flatten(1).double(), theirs.flatten(1).double())
            return torch.stack([alike.sum(), torch.tensor(float(len(alike)), dtype=torch.float64)])

        def scores(total: torch.Tensor) -> Mapping[str, Score]:
            found, count = total.tolist()
            return {"last layer": Score(found / count, count, "plain")}

        return self._measured(SIMILARITY, batches, cosines, scores, whole=True)

    @property
    def _batches(self) -> list[Batch]:
        return [batch for rung in self._rungs for batch in rung]

    def _measured(
        self,
        name: str,
        batches: Sequence[Batch],
        of_batch: Callable[[Batch], torch.Tensor],
        scores: Callable[[torch.Tensor], Mapping[str, Score]],
        *,
        whole: bool = False,
    ) -> Outcome:
        """Add up what a function gives for every batch.

        Args:
            whole: the function cuts its batches itself.

        Raises:
            ConfigError: there is nothing to run.
            ScoringError: the model cannot be run, or its states are not finite.
        """
        if not batches:
            raise ConfigError(
                f"the {name} of layers is measured on texts or on tasks with right answers, and the "
                "objectives have neither"
            )
        begun = time.monotonic()
        try:
            parts = [of_batch(batch) if whole else self._cut(batch, of_batch) for batch in batches]
        except Exception as error:  # models fail in every possible way
            raise ScoringError(f"the {name} of layers: {type(error).__name__}: {error}") from error
        total = torch.stack(parts).sum(0)
        if not total.isfinite().all():
            raise ScoringError(f"the {name} of layers is not finite")
        made: Scores = {name: scores(total)}
        tokens = sum(batch.ids.numel() for batch in batches)
        return Outcome(made, None, time.monotonic() - begun, tokens)

    def _cut(self, batch: Batch, of_batch: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        def summed(size: int) -> torch.Tensor:
            return torch.stack([of_batch(part) for part in batch.cut(size)]).sum(0)

        return self._sizes.run(summed, self._composer.device)

    def _last_states(self, plan: Plan, batch: Batch) -> torch.Tensor:
        """What the last layer gives, 0 where there is no token, float32 [sequences, length, width]."""

        def last(size: int) -> torch.Tensor:
            found = []
            for part in batch.cut(size):
                (*_, state) = self._states(plan, part)
                found.append((state.float() * _tokens(part)[..., None]).cpu())
            return torch.cat(found)

        return self._sizes.run(last, self._composer.device)

    def _states(self, plan: Plan, batch: Batch) -> Iterator[State]:
        """What goes into the first layer, and what each layer gives."""
        streams = self._composer.streams
        whole = None if streams else self._composer.compose(plan)
        state: State = None
        for depth in range(len(plan.slots)):
            model = whole if whole is not None else self._composer.compose(plan, only=(depth,))
            wanted = {-1, 0} if depth == 0 else {depth}
            layers = range(depth, depth + 1)
            *before, state = advance(model, batch.ids, state, layers, wanted, batch.branches)
            yield from before
            yield state


def block_name(block: Block) -> str:
    """What a block's score is called."""
    return f"{block[0]}:{block[1]}"


def block_of(name: str) -> Block:
    """See block_name."""
    first, stop = name.split(":")
    return int(first), int(stop)


def _lengths(batch: Batch) -> torch.Tensor:
    """Tokens of each sequence, without padding [sequences]."""
    length = batch.ids.shape[1]
    lengths = [len(row.ids) for row in batch.rows] or [length] * len(batch.ids)
    return torch.tensor(lengths, device=batch.ids.device)


def _last(batch: Batch) -> torch.Tensor:
    return _lengths(batch) - 1


def _tokens(batch: Batch) -> torch.Tensor:
    """Where there are tokens and no padding, bool [sequences, length]."""
    places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return places[None] < _lengths(batch)[:, None]
