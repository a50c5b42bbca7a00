"""Computes hidden states of plans on texts, and keeps as many of them as the host may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import State, advance
from gptailor_merge.recipe.plan import Plan

DENSE_BYTES = 2 * 1024**3
"""Bytes of the base's states that are kept on the host."""


def states_of(
    composer: Composer, plan: Plan, batch: Batch, state: State, first: int, record: Sequence[int]
) -> list[State]:
    """Runs the slots from `first` to the last of `record`, and returns the states behind those of `record`.

    Args:
        state: behind the slot before `first`, on any device.
        record: slots in order; -1 together with 0 also returns the input of slot 0.
    """
    slots = range(first, record[-1] + 1)
    if first:
        state = state.to(composer.device)
    return advance(composer.compose(plan, only=slots), batch.ids, state, slots, set(record))


class DenseStates:
    """Gives the states behind layers of the base, batch by batch, to all plans that are repaired.

    The base runs once. The states are kept on the host; if `most_bytes` do not hold all of them, those
    behind evenly spaced layers are, and the others are computed from the nearest ones below.

    Args:
        base: the plan of the base.
        layers: the layers that will be asked for; others can be.
    """

    def __init__(
        self,
        composer: Composer,
        base: Plan,
        batches: Sequence[Batch],
        layers: Iterable[int],
        most_bytes: int = DENSE_BYTES,
    ) -> None:
        self._composer, self._base, self._batches = composer, base, batches
        self._layers, self._most_bytes = sorted(set(layers)), most_bytes
        self._kept: dict[int, dict[int, State]] = {}

    def behind(self, layer: int, number: int) -> State:
        """Returns the state [sequences, length, width] behind a layer, for the batch with a number."""
        if number not in self._kept:
            self._keep(number)
        kept = self._kept[number]
        if layer not in kept:
            below = max((known for known in kept if known < layer), default=-1)
            batch = self._batches[number]
            (state,) = states_of(self._composer, self._base, batch, kept.get(below), below + 1, [layer])
            return state
        return kept[layer]

    def _keep(self, number: int) -> None:
        """Runs the base on a batch up to the last layer that will be asked for."""
        batch = self._batches[number]
        states = states_of(self._composer, self._base, batch, None, 0, self._layers) if self._layers else []
        by_layer = dict(zip(self._layers, states, strict=True))
        self._kept[number] = {layer: by_layer[layer].cpu() for layer in self._room_for(batch, states)}

    def _room_for(self, batch: Batch, states: Sequence[State]) -> list[int]:
        """Returns the layers whose states are kept: the same for every batch."""
        if not states:
            return []
        tokens = sum(batch.ids.numel() for batch in self._batches)
        bytes_of_layer = states[0].nbytes * tokens / batch.ids.numel()
        count = min(int(self._most_bytes // bytes_of_layer), len(self._layers))
        return [self._layers[(at + 1) * len(self._layers) // (count + 1)] for at in range(count)]
