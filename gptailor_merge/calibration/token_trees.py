"""Turns requests of task items into rows of tokens, so that what they have in common is computed once.

A request is a text and its last tokens, whose likelihood is asked for. The options of a question begin
with the same context: as a tree, the context and behind it each option, they are one row, in which
each token sees those before it on its own branch. Options of one token need no branch: all are asked
of the same position. A model that does not take trees gets each text by itself.
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
from gptailor_merge.digests import digest

WORTHWHILE = 0.75
"""Texts become a tree where it has no more than this share of their tokens."""


LARGEST_TREE = 2048
"""Most tokens in a tree: the mask of what each token sees grows with the square."""


class Request(NamedTuple):
    """A text whose last tokens are scored.

    Attributes:
        ids: of all tokens.
        scored: how many of the last ones are scored.
    """

    ids: tuple[int, ...]
    scored: int


class TokenRow(NamedTuple):
    """Tokens that go through a model as one sequence, and what is asked of them.

    Attributes:
        ids: token ids [length].
        parents: for each token the place of the one before it, -1 for a first one [length].
        places: positions at which something is asked, ascending [places].
        at: index into `places` for each token asked for [asked].
        asked: the token ids asked for [asked].
    """

    ids: torch.Tensor
    parents: torch.Tensor
    places: torch.Tensor
    at: torch.Tensor
    asked: torch.Tensor

    @property
    def is_text(self) -> bool:
        """True where each token follows the one before."""
        return bool((self.parents == torch.arange(-1, len(self.ids) - 1)).all())


@dataclass(frozen=True, eq=False)
class ItemSet(TokenSet):
    """The requests of a task's items, laid out as rows.

    Attributes:
        trees: True where texts that begin alike may share tokens.
        rows: those of the first item, then of the second, and so on; `sequences` are their ids.
        stops: number of rows up to the end of each item.
        order: for each token asked for, in the order of the requests, its place in the order of the rows.
        tokens_of_requests: for each item, how many tokens each of its requests asks for.
        recorded_digest: what fingerprints hold in place of `digest`; it depends on less, as it did
            in the first runs, so that these can be resumed.
    """

    trees: bool = False
    rows: tuple[TokenRow, ...] = ()
    stops: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    tokens_of_requests: tuple[tuple[int, ...], ...] = field(default=())
    recorded_digest: str = ""

    @property
    def units(self) -> int:
        """The number of items."""
        return len(self.stops)

    def items_of(self, first: int, stop: int) -> tuple[int, int]:
        """Returns the items (first, stop) that the rows from `first` to `stop` belong to."""
        return bisect_right(self.stops, first), bisect_right(self.stops, stop - 1) + 1

    def asked(self, rows: Sequence[int], first: int, stop: int) -> NDArray[np.int64]:
        """Returns where the tokens that items ask for stand among all tokens that rows ask for.

        Args:
            rows: all rows of the items from `first` to `stop`, in the order in which they were scored.

        Returns:
            A place for each token, in the order of the requests [asked].
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
        """Returns how many rows hold a share of the items, rounded up."""
        return self.stops[math.ceil(share * len(self.stops)) - 1]


def item_set(
    name: str, items: Sequence[Sequence[Request]], *, trees: bool, documents: frozenset[str] = frozenset()
) -> ItemSet:
    """Lays out items, each of one request or more.

    Args:
        trees: see ItemSet.
        documents: texts of the items, white space evened out.
    """
    rows: list[TokenRow] = []
    stops: list[int] = []
    order: list[int] = []
    asked = 0
    for requests in items:
        item_rows, places = _rows_of(requests, trees)
        order += [asked + place for place in places]
        asked += len(places)
        rows += item_rows
        stops.append(len(rows))
    recorded = digest(
        [[row.ids.tolist(), row.parents.tolist(), row.places.tolist(), row.asked.tolist()] for row in rows]
    )
    return ItemSet(
        name,
        tuple(row.ids for row in rows),
        digest([recorded, [row.at.tolist() for row in rows], stops, order]),
        documents,
        trees,
        tuple(rows),
        tuple(stops),
        tuple(order),
        tuple(tuple(request.scored for request in requests) for requests in items),
        recorded,
    )


def _rows_of(requests: Sequence[Request], trees: bool) -> tuple[list[TokenRow], list[int]]:
    """Lays out one item.

    Returns:
        The rows; and for each token asked for, request by request, its place among those of the rows.
    """
    # What predicts a token is the one before it: the last token itself need not go through.
    texts = [request.ids[:-1] for request in requests]
    grown = _grown(texts, trees)
    queries: list[list[tuple[int, int]]] = [[] for _ in grown]
    asked_at: list[tuple[int, int]] = []
    for request, text in zip(requests, texts, strict=True):
        number, path = next((n, p) for n, tree in enumerate(grown) if (p := tree.path(text)) is not None)
        for place, token in zip(path[-request.scored :], request.ids[-request.scored :], strict=True):
            asked_at.append((number, len(queries[number])))
            queries[number].append((place, token))
    rows = [tree.row(asked) for tree, asked in zip(grown, queries, strict=True)]
    starts = [sum(len(asked) for asked in queries[:number]) for number in range(len(grown))]
    return rows, [starts[number] + index for number, index in asked_at]


def _grown(texts: Sequence[tuple[int, ...]], trees: bool) -> list[TreeBuilder]:
    """Grows one tree of all texts where that is worthwhile, and else a row for each.

    A text that another begins with needs no row of its own.
    """
    distinct = list(dict.fromkeys(sorted(texts, key=len, reverse=True)))
    whole = [t for n, t in enumerate(distinct) if not any(longer[: len(t)] == t for longer in distinct[:n])]
    together = TreeBuilder()
    for text in whole:
        together.add(text, range(-1, len(text) - 1))
    size = len(together.ids)
    if trees and size <= WORTHWHILE * sum(map(len, whole)) and size <= LARGEST_TREE:
        return [together]
    apart = []
    for text in whole:
        apart.append(TreeBuilder())
        apart[-1].add(text, range(-1, len(text) - 1))
    return apart


class TreeBuilder:
    """Texts that share the tokens they begin with.

    Attributes:
        ids: of all tokens, in the order in which they were added.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, ids: Sequence[int], parents: Sequence[int]) -> list[int]:
        """Adds what is missing of another tree and returns the places of all its tokens."""
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
        """Returns how many tokens `add` would add."""
        places: list[int | None] = []
        for token, parent in zip(ids, parents, strict=True):
            before = places[parent] if parent >= 0 else -1
            places.append(None if before is None else self._children.get((before, token)))
        return places.count(None)

    def path(self, text: Sequence[int]) -> list[int] | None:
        """Returns the places of a text's tokens, or None where the tree does not hold it."""
        places: list[int] = []
        place: int | None = -1
        for token in text:
            assert place is not None
            place = self._children.get((place, token))
            if place is None:
                return None
            places.append(place)
        return places

    def row(self, queries: Sequence[tuple[int, int]]) -> TokenRow:
        """Returns the tree as a row.

        Args:
            queries: (place that predicts, token id asked for).
        """
        places = sorted({place for place, _ in queries})
        index = {place: number for number, place in enumerate(places)}
        return TokenRow(
            torch.tensor(self.ids),
            torch.tensor(self._parents),
            torch.tensor(places),
            torch.tensor([index[place] for place, _ in queries]),
            torch.tensor([token for _, token in queries]),
        )
