"""Requests of task items become rows of tokens, so that what they have in common is computed once.

A request is a text and its last tokens, whose likelihood is asked for. The options of a question begin
with the same context: as a tree, the context and behind it each option, they are one row, in which
each token sees those before it on its own branch. Options of one token need no branch: all are asked
of the same position. Rows of several items that begin alike, with the same examples or just with the
same word, are one sequence in the same way. A model that does not take trees gets each text by itself.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.prefixes import Branches
from gptailor_merge.digests import digest

WORTHWHILE = 0.75
"""A tree stands for its texts where it has no more than this share of their tokens."""


LARGEST_TREE = 2048
"""In tokens: what a token may see is as large as the square of it."""


FILLED = 128
"""Short rows are put together up to so many tokens: what they share is saved, and they need no padding."""


EVEN = 512
"""About so many tokens in its row make a token's attention as costly as the rest of a small model's layer."""


OPEN = 8
"""A row is put to one of so many sequences begun last; rows come in the order of their tokens."""


class Request(NamedTuple):
    """Token ids, and how many of the last are scored."""

    ids: tuple[int, ...]
    scored: int


class Row(NamedTuple):
    """Tokens that go through a model together, and what is asked of them.

    Attributes:
        ids, parents: of each token itself and the place of the one before it, -1 for a first one.
        places: where something is asked, ascending.
        at: of each token asked for: index into `places`.
        asked: the token ids asked for.
    """

    ids: torch.Tensor
    parents: torch.Tensor
    places: torch.Tensor
    at: torch.Tensor
    asked: torch.Tensor

    @property
    def is_text(self) -> bool:
        """Whether each token follows the one before."""
        return bool((self.parents == torch.arange(-1, len(self.ids) - 1)).all())


class Member(NamedTuple):
    """A row of a set: the set's digest, the row's number, and how many tokens it asks for."""

    digest: str
    number: int
    asked: int


class Pack(NamedTuple):
    """Rows that go through a model as one sequence.

    Attributes:
        row: all of them as one.
        members: in the order in which it asks for their tokens.
    """

    row: Row
    members: tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class ItemSet(TokenSet):
    """The requests of a task's items as rows.

    Attributes:
        trees: whether texts that begin alike may share tokens.
        rows: of the items in their order; `sequences` are their ids.
        stops: rows up to the end of each item.
        order: of each token asked for, in the order of the requests: its place in that of the rows.
        tokens_of_requests: how many tokens each request asks for, item by item.
    """

    trees: bool = False
    rows: tuple[Row, ...] = ()
    stops: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    tokens_of_requests: tuple[tuple[int, ...], ...] = field(default=())

    @property
    def units(self) -> int:
        """Items."""
        return len(self.stops)

    def items_of(self, first: int, stop: int) -> tuple[int, int]:
        """The items (first, stop) whose rows are these."""
        return bisect_right(self.stops, first), bisect_right(self.stops, stop - 1) + 1

    def asked(self, rows: Sequence[int], first: int, stop: int) -> NDArray[np.int64]:
        """Where, among all that is asked of these rows in their order, each token asked for by items is.

        Args:
            rows: all rows of the items from `first` to `stop`, in any order.
        """
        counts = np.array([len(row.asked) for row in self.rows])
        starts = np.concatenate([[0], np.cumsum(counts)])
        begins = np.zeros(len(counts), dtype=np.int64)
        begins[list(rows)] = np.concatenate([[0], np.cumsum(counts[list(rows)])[:-1]])
        low = starts[self.stops[first - 1]] if first else 0
        wanted = np.array(self.order[low : starts[self.stops[stop - 1]]])
        row_of = np.searchsorted(starts, wanted, side="right") - 1
        places: NDArray[np.int64] = begins[row_of] + wanted - starts[row_of]
        return places

    def rows_until(self, share: float) -> int:
        """How many rows hold this share of the items, rounded up."""
        return self.stops[math.ceil(share * len(self.stops)) - 1]


def item_set(
    name: str, items: Sequence[Sequence[Request]], *, trees: bool, documents: frozenset[str] = frozenset()
) -> ItemSet:
    """Lay out items, each of one request or more.

    Args:
        trees: see ItemSet.
    """
    rows: list[Row] = []
    stops: list[int] = []
    order: list[int] = []
    asked = 0
    for requests in items:
        made, places = _layout(requests, trees)
        order += [asked + place for place in places]
        asked += len(places)
        rows += made
        stops.append(len(rows))
    content = [
        [row.ids.tolist(), row.parents.tolist(), row.places.tolist(), row.asked.tolist()] for row in rows
    ]
    return ItemSet(
        name,
        tuple(row.ids for row in rows),
        digest(content),
        documents,
        trees,
        tuple(rows),
        tuple(stops),
        tuple(order),
        tuple(tuple(request.scored for request in requests) for requests in items),
    )


def packed(rows: Sequence[tuple[ItemSet, int]]) -> list[Pack]:
    """Put rows together where that saves computation.

    Args:
        rows: (set, number of one of its rows).
    """
    shared: list[_Pack] = []
    alone: list[_Pack] = []
    for items, number in sorted(rows, key=lambda one: one[0].rows[one[1]].ids.tolist()):
        row = items.rows[number]
        pack = _best(shared[-OPEN:], row) if items.trees else None
        if pack is None:
            pack = _Pack()
            (shared if items.trees else alone).append(pack)
        pack.add(Member(items.digest, number, len(row.asked)), row)
    return [pack.made() for pack in (*shared, *alone)]


def probe(items: ItemSet) -> list[int]:
    """The items on which a model shows whether it takes the rows that texts share; none share one.

    Those of the longest row, and of the one with the longest text: a model may look back less far than a
    row is long, or than a text.
    """
    packs = packed([(items, number) for number in range(len(items.rows))])
    shared = [pack for pack in packs if not pack.row.is_text]
    if not shared:
        return []
    telling = [
        max(shared, key=lambda pack: len(pack.row.ids)),
        max(shared, key=lambda pack: _depth(pack.row)),
    ]
    return sorted({items.items_of(m.number, m.number + 1)[0] for pack in telling for m in pack.members})


def _best(packs: Sequence[_Pack], row: Row) -> _Pack | None:
    """The one to which a row adds the fewest tokens, if that saves computation."""
    ids, parents = row.ids.tolist(), row.parents.tolist()
    best, least = None, len(ids) + 1
    for pack in packs:
        new = pack.tree.missing(ids, parents)
        if new < least and _saves(len(pack.tree.ids), new, len(ids)):
            best, least = pack, new
    return best


def _saves(size: int, new: int, alone: int) -> bool:
    """Whether a row of so many tokens costs less in a tree of `size` to which it adds `new`."""
    if size + new <= FILLED:
        return True
    added = new * (1 + (2 * size + new) / EVEN)
    return added < alone * (1 + alone / EVEN) and size + new <= LARGEST_TREE


def _depth(row: Row) -> int:
    """Tokens of the longest text in it."""
    depths: list[int] = []
    for parent in row.parents.tolist():
        depths.append(depths[parent] + 1 if parent >= 0 else 1)
    return max(depths)


def branches(rows: Sequence[Row], length: int) -> Branches | None:
    """What each token of padded rows follows; None where a plain causal model sees just that."""
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


def _layout(requests: Sequence[Request], trees: bool) -> tuple[list[Row], list[int]]:
    """Rows, and for each token asked for, request by request, its place among those of the rows."""
    # What predicts a token is the one before it: the last token itself need not go through.
    texts = [request.ids[:-1] for request in requests]
    distinct = list(dict.fromkeys(sorted(texts, key=len, reverse=True)))
    whole = [t for n, t in enumerate(distinct) if not any(longer[: len(t)] == t for longer in distinct[:n])]
    together = _Tree()
    for text in whole:
        together.add(text, range(-1, len(text) - 1))
    size = len(together.ids)
    one_row = trees and size <= WORTHWHILE * sum(map(len, whole)) and size <= LARGEST_TREE
    grown = [together] if one_row else []
    if not one_row:
        for text in whole:
            grown.append(_Tree())
            grown[-1].add(text, range(-1, len(text) - 1))
    asked: list[list[tuple[int, int]]] = [[] for _ in grown]
    found: list[tuple[int, int]] = []
    for request, text in zip(requests, texts, strict=True):
        number, path = next((n, p) for n, tree in enumerate(grown) if (p := tree.path(text)) is not None)
        for place, token in zip(path[-request.scored :], request.ids[-request.scored :], strict=True):
            found.append((number, len(asked[number])))
            asked[number].append((place, token))
    rows = [tree.row(queries) for tree, queries in zip(grown, asked, strict=True)]
    starts = [sum(len(queries) for queries in asked[:number]) for number in range(len(grown))]
    return rows, [starts[number] + index for number, index in found]


class _Tree:
    """Texts that share the tokens they begin with."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, ids: Sequence[int], parents: Sequence[int]) -> list[int]:
        """Grow what is missing of another tree; the places of its tokens."""
        places: list[int] = []
        for token, parent in zip(ids, parents, strict=True):
            before = places[parent] if parent >= 0 else -1
            place = self._children.setdefault((before, token), len(self.ids))
            if place == len(self.ids):
                self.ids.append(token)
                self._parents.append(before)
            places.append(place)
        return places

    def missing(self, ids: Sequence[int], parents: Sequence[int]) -> int:
        """How many tokens `add` would grow."""
        places: list[int | None] = []
        for token, parent in zip(ids, parents, strict=True):
            before = places[parent] if parent >= 0 else -1
            places.append(None if before is None else self._children.get((before, token)))
        return places.count(None)

    def path(self, text: Sequence[int]) -> list[int] | None:
        """The places of a text's tokens, or None where it is not here."""
        places: list[int] = []
        place: int | None = -1
        for token in text:
            assert place is not None
            place = self._children.get((place, token))
            if place is None:
                return None
            places.append(place)
        return places

    def row(self, queries: Sequence[tuple[int, int]]) -> Row:
        """With what is asked: (place, token id)."""
        places = sorted({place for place, _ in queries})
        index = {place: number for number, place in enumerate(places)}
        return Row(
            torch.tensor(self.ids),
            torch.tensor(self._parents),
            torch.tensor(places),
            torch.tensor([index[place] for place, _ in queries]),
            torch.tensor([token for _, token in queries]),
        )


class _Pack:
    """Rows that are being put together."""

    def __init__(self) -> None:
        self.tree = _Tree()
        self._members: list[Member] = []
        self._queries: list[tuple[int, int]] = []

    def add(self, member: Member, row: Row) -> None:
        """A row whose digest and number this is."""
        places = self.tree.add(row.ids.tolist(), row.parents.tolist())
        wanted = row.places[row.at].tolist()
        self._queries += [(places[at], token) for at, token in zip(wanted, row.asked.tolist(), strict=True)]
        self._members.append(member)

    def made(self) -> Pack:
        """All of it."""
        return Pack(self.tree.row(self._queries), tuple(self._members))
