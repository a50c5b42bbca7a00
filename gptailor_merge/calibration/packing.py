"""Puts rows of several items together where that saves computation.

Rows that begin alike, with the same examples or just with the same word, become one sequence, a tree in
which the shared tokens stand once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from gptailor_merge.calibration.token_trees import LARGEST_TREE, ItemSet, TokenRow, TreeBuilder
from gptailor_merge.composing.prefixes import Branches

FILLED = 128
"""Short rows are put together up to this many tokens: what they share is saved, and they need no padding."""


EVEN = 512
"""Tokens in a row with which a token's attention costs about as much as the rest of a small layer."""


OPEN = 8
"""A row is tried with this many sequences, the latest ones; rows come in the order of their tokens."""


class PackedRow(NamedTuple):
    """A row of a set inside a pack.

    Attributes:
        digest: of the set.
        number: of the row in its set.
        asked: how many tokens the row asks for.
    """

    digest: str
    number: int
    asked: int


class Pack(NamedTuple):
    """Rows that go through a model as one sequence.

    Attributes:
        row: all of them as one.
        members: the rows, in the order in which `row` asks for their tokens.
    """

    row: TokenRow
    members: tuple[PackedRow, ...]


def packed(rows: Sequence[tuple[ItemSet, int]]) -> list[Pack]:
    """Puts rows together where that saves computation.

    Args:
        rows: (set, number of one of its rows).
    """
    shared: list[_PackBuilder] = []
    alone: list[_PackBuilder] = []
    for items, number in sorted(rows, key=lambda entry: entry[0].rows[entry[1]].ids.tolist()):
        row = items.rows[number]
        pack = _best(shared[-OPEN:], row) if items.trees else None
        if pack is None:
            pack = _PackBuilder()
            (shared if items.trees else alone).append(pack)
        pack.add(PackedRow(items.digest, number, len(row.asked)), row)
    return [pack.build() for pack in (*shared, *alone)]


def branches(rows: Sequence[TokenRow], length: int) -> Branches | None:
    """Returns what each token of padded rows follows; None where a plain causal model sees just that.

    Args:
        length: of the padded rows.
    """
    if all(row.is_text for row in rows):
        return None
    positions = torch.zeros(len(rows), length, dtype=torch.int64)
    # Padding sees itself: a softmax over nothing is not a number.
    visible = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        for place, parent in enumerate(row.parents.tolist()):
            if parent >= 0:
                positions[number, place] = positions[number, parent] + 1
                visible[number, place] |= visible[number, parent]
    return Branches(positions, visible[:, None])


def _best(packs: Sequence[_PackBuilder], row: TokenRow) -> _PackBuilder | None:
    """Returns the pack to which a row adds the fewest tokens; None where none saves computation."""
    ids, parents = row.ids.tolist(), row.parents.tolist()
    best, least = None, len(ids) + 1
    for pack in packs:
        new = pack.tree.missing(ids, parents)
        if new < least and _saves(len(pack.tree.ids), new, len(ids)):
            best, least = pack, new
    return best


def _saves(size: int, new: int, alone: int) -> bool:
    """Tells whether a row costs less in a tree than by itself.

    Args:
        size: tokens of the tree.
        new: tokens that the row adds to it.
        alone: tokens of the row.
    """
    if size + new <= FILLED:
        return True
    added = new * (1 + (2 * size + new) / EVEN)
    return added < alone * (1 + alone / EVEN) and size + new <= LARGEST_TREE


class _PackBuilder:
    """Rows that are being put together."""

    def __init__(self) -> None:
        self.tree = TreeBuilder()
        self._members: list[PackedRow] = []
        self._queries: list[tuple[int, int]] = []

    def add(self, member: PackedRow, row: TokenRow) -> None:
        """Adds a row and what it asks for."""
        places = self.tree.add(row.ids.tolist(), row.parents.tolist())
        wanted = row.places[row.at].tolist()
        self._queries += [(places[at], token) for at, token in zip(wanted, row.asked.tolist(), strict=True)]
        self._members.append(member)

    def build(self) -> Pack:
        """Returns the finished pack."""
        return Pack(self.tree.row(self._queries), tuple(self._members))
