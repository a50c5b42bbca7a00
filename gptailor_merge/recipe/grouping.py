"""Groups neighbouring slots that are made alike of layers that follow each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gptailor_merge.recipe.plan import Slot


def runs(slots: Sequence[Slot]) -> Iterator[range]:
    """Yields the positions of each run: slots that differ only in that each takes the next layers.

    >>> from gptailor_merge.recipe.plan import SELECT, Operation
    >>> select = Operation(SELECT, ((),))
    >>> layers = [("base", 0), ("base", 1), ("math", 2)]
    >>> [list(run) for run in runs([Slot((layer,), select) for layer in layers])]
    [[0, 1], [2]]
    """
    begin = 0
    for position in range(1, len(slots) + 1):
        if position == len(slots) or slots[position] != shifted(slots[begin], position - begin):
            yield range(begin, position)
            begin = position


def shifted(slot: Slot, distance: int) -> Slot:
    """Returns a slot made alike of the layers that are `distance` further up."""
    return replace(slot, layers=tuple((model, layer + distance) for model, layer in slot.layers))
