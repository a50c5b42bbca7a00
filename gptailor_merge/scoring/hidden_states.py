"""Measures what each layer of a model does to its hidden states.

The passes run on the texts of the calibration set, and where there are none on the rows of tasks' items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch.nn import functional

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.memory import BatchSize
from gptailor_merge.composing.prefixes import State, advance
from gptailor_merge.errors import ConfigError, ScoringError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.executor import Outcome

INFLUENCE, DISTANCE, SIMILARITY = "block influence", "angular distance", "similarity"
"""The names of the three measures, as outcomes and the journal have them."""


Block = tuple[int, int]
"""Neighbouring layers [first, past the last)."""


class HiddenStates:
    """Measures the states between the layers of a plan's model, one batch and one layer after the other.

    Memory is bounded by a few states [sequences, length, width]; a batch that does not fit is cut.
    """

    def __init__(self, make_composer: Callable[[], Composer], rungs: Sequence[Sequence[Batch]]) -> None:
        """
        Args:
            make_composer: gives the composer of the models; called when the first model is needed.
            rungs: the batches of the calibration set, see passes.Passes.
        """
        self._make_composer = make_composer
        batches = [batch for rung in rungs for batch in rung]
        texts = any(not batch.rows for batch in batches)
        self._rungs = [[batch for batch in rung if not (texts and batch.rows)] for rung in rungs]
        self._sizes = BatchSize(max((len(batch.ids) for batch in batches), default=1))
        self._reference: tuple[str, list[torch.Tensor]] | None = None

    @cached_property
    def _composer(self) -> Composer:
        return self._make_composer()

    def block_influence(self, plan: Plan) -> Outcome:
        """Scores each layer by 1 − cos(its input, its output), mean over all tokens; layer -> score."""

        def cosines(batch: Batch) -> torch.Tensor:
            is_token, sums = _token_mask(batch), []
            states = self._states(plan, batch)
            before = next(states)
            for after in states:
                alike = functional.cosine_similarity(before.float(), after.float(), dim=-1)
                sums.append(alike[is_token].cpu().double().sum())
                before = after
            return torch.stack([*sums, is_token.cpu().double().sum()])

        def scores(total: torch.Tensor) -> Mapping[str, Score]:
            *sums, count = total.tolist()
            return {str(layer): Score(1 - value / count, count, "plain") for layer, value in enumerate(sums)}

        return self._measured(INFLUENCE, self._batches, cosines, scores)

    def angular_distances(self, plan: Plan, lengths: Collection[int]) -> Outcome:
        """Scores blocks of layers by arccos(cos(input of the block, input of the layer after it)) / π.

        It is taken at the last token of each sequence, mean over sequences; block -> score.

        Args:
            lengths: the lengths of the blocks, in layers.
        """
        depth = len(plan.slots)
        blocks = [(at, at + n) for n in sorted(lengths) for at in range(depth - n + 1)]

        def angles(batch: Batch) -> torch.Tensor:
            last = _last_tokens(batch)
            at = torch.arange(len(last), device=last.device), last
            states = [state[at].cpu().double() for state in self._states(plan, batch)]
            sums = []
            for first, stop in blocks:
                cosine = functional.cosine_similarity(states[first], states[stop], dim=-1)
                sums.append(cosine.clamp(-1, 1).arccos().sum() / torch.pi)
            return torch.stack([*sums, torch.tensor(float(len(last)), dtype=torch.float64)])

        def scores(total: torch.Tensor) -> Mapping[str, Score]:
            *sums, count = total.tolist()
            by_block = zip(blocks, sums, strict=True)
            return {block_name(block): Score(value / count, count, "plain") for block, value in by_block}

        return self._measured(DISTANCE, self._batches, angles, scores)

    def similarity(self, plan: Plan, reference: Plan) -> Outcome:
        """Scores a model by the cosine of its last layer's states and a reference's.

        All states of a sequence count as one vector; mean over the sequences of the first rung. The
        reference's states are kept, float32 [tokens, width]; they cost a pass when the reference itself
        is scored.
        """
        batches = next((rung for rung in self._rungs if rung), [])
        if self._reference is None or self._reference[0] != reference.digest:
            states = [self._last_states(reference, batch) for batch in batches]
            self._reference = reference.digest, states
        reference_states = dict(zip(map(id, batches), self._reference[1], strict=True))

        def cosines(batch: Batch) -> torch.Tensor:
            theirs = reference_states[id(batch)]
            ours = theirs if plan.digest == reference.digest else self._last_states(plan, batch)
            alike = functional.cosine_similarity(ours.flatten(1).double(), theirs.flatten(1).double())
            return torch.stack([alike.sum(), torch.tensor(float(len(alike)), dtype=torch.float64)])

        def scores(total: torch.Tensor) -> Mapping[str, Score]:
            value, count = total.tolist()
            return {"last layer": Score(value / count, count, "plain")}

        return self._measured(SIMILARITY, batches, cosines, scores, cuts_itself=True)

    @property
    def _batches(self) -> list[Batch]:
        return [batch for rung in self._rungs for batch in rung]

    def _measured(
        self,
        name: str,
        batches: Sequence[Batch],
        sums: Callable[[Batch], torch.Tensor],
        scores: Callable[[torch.Tensor], Mapping[str, Score]],
        *,
        cuts_itself: bool = False,
    ) -> Outcome:
        """Adds up sums over all batches and makes them scores.

        Args:
            cuts_itself: `sums` takes whole batches and cuts them where memory does not hold them.

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
            parts = [sums(batch) if cuts_itself else self._cut(batch, sums) for batch in batches]
        except Exception as error:  # models fail in every possible way
            raise ScoringError(f"the {name} of layers: {type(error).__name__}: {error}") from error
        total = torch.stack(parts).sum(0)
        if not total.isfinite().all():
            raise ScoringError(f"the {name} of layers is not finite")
        tokens = sum(batch.ids.numel() for batch in batches)
        return Outcome({name: scores(total)}, None, time.monotonic() - begun, tokens)

    def _cut(self, batch: Batch, sums: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        def added(size: int) -> torch.Tensor:
            return torch.stack([sums(part) for part in batch.cut(size)]).sum(0)

        return self._sizes.run(added, self._composer.device)

    def _last_states(self, plan: Plan, batch: Batch) -> torch.Tensor:
        """Returns the output of the last layer, 0 on padding, float32 [sequences, length, width]."""

        def masked(size: int) -> torch.Tensor:
            parts = []
            for part in batch.cut(size):
                (*_, state) = self._states(plan, part)
                parts.append((state.float() * _token_mask(part)[..., None]).cpu())
            return torch.cat(parts)

        return self._sizes.run(masked, self._composer.device)

    def _states(self, plan: Plan, batch: Batch) -> Iterator[State]:
        """Yields the input of the first layer, and the output of each layer."""
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
    """Returns the name of a block's score.

    >>> block_name((3, 5))
    '3:5'
    """
    return f"{block[0]}:{block[1]}"


def block_of(name: str) -> Block:
    """Returns the block whose score has a name.

    >>> block_of("3:5")
    (3, 5)
    """
    first, stop = name.split(":")
    return int(first), int(stop)


def _lengths(batch: Batch) -> torch.Tensor:
    """Returns the number of tokens of each sequence, without padding [sequences]."""
    length = batch.ids.shape[1]
    lengths = [len(row.ids) for row in batch.rows] or [length] * len(batch.ids)
    return torch.tensor(lengths, device=batch.ids.device)


def _last_tokens(batch: Batch) -> torch.Tensor:
    return _lengths(batch) - 1


def _token_mask(batch: Batch) -> torch.Tensor:
    """Marks tokens and not padding, bool [sequences, length]."""
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    return positions[None] < _lengths(batch)[:, None]
