"""Lays out token sets as batches: rungs of growing share, rows of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from gptailor_merge.calibration.packing import Pack, branches, packed
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.calibration.token_trees import ItemSet, TokenRow
from gptailor_merge.composing.prefixes import Branches

RUNGS = (0.125, 0.25, 0.5, 1.0)
"""The share of every set's sequences that is scored at the end of each rung."""


PADDING = 1 / 64
"""The share of a full batch that padding may waste before sequences of items get a batch of their own."""


@dataclass(frozen=True)
class Segment:
    """Rows of a batch that belong to one set.

    Attributes:
        digest: of the set.
        rows: numbers of the rows in the set.
        at: sequences of the batch that hold them; items share sequences with others.
    """

    digest: str
    rows: Sequence[int]
    at: range

    def part(self, start: int, stop: int) -> Segment:
        """Returns the segment of its rows from `start` to `stop`, counted from its first."""
        return Segment(self.digest, self.rows[start:stop], self.at[start:stop])


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences that go through a model together.

    Texts have one length, and every token but the first is asked for. Sequences of items hold one row or
    more, are padded on the right, where a causal model does not look, and say what is asked.

    Attributes:
        ids: token ids [sequences, length].
        segments: say which rows of which sets the batch holds, in order.
        packs: for items, the rows of each sequence; empty for texts.
    """

    ids: torch.Tensor
    segments: tuple[Segment, ...]
    packs: tuple[Pack, ...] = ()
    _cut: dict[int, list[Batch]] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> tuple[TokenRow, ...]:
        """The sequences of items as rows; empty for texts."""
        return tuple(pack.row for pack in self.packs)

    @cached_property
    def branches(self) -> Branches | None:
        """The tokens that each token follows; None where all rows are plain texts."""
        followed = branches(self.rows, self.ids.shape[1])
        return followed and Branches(*(part.to(self.ids.device) for part in followed))

    @cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(sequence, position) of everything that predicts a token of items, in order."""
        counts = torch.tensor([len(row.places) for row in self.rows])
        sequences = torch.arange(len(self.rows)).repeat_interleave(counts)
        places = torch.cat([row.places for row in self.rows])
        return sequences.to(self.ids.device), places.to(self.ids.device)

    @cached_property
    def questions(self) -> list[tuple[Segment, torch.Tensor, torch.Tensor]]:
        """Each segment of items, with index into `places` and id of each token asked for."""
        at: dict[str, list[torch.Tensor]] = {}
        asked: dict[str, list[torch.Tensor]] = {}
        start = 0
        for row, members in self.packs:
            first = 0
            for digest, _, count in members:
                at.setdefault(digest, []).append(row.at[first : first + count] + start)
                asked.setdefault(digest, []).append(row.asked[first : first + count])
                first += count
            start += len(row.places)
        device = self.ids.device
        return [
            (segment, torch.cat(at[segment.digest]).to(device), torch.cat(asked[segment.digest]).to(device))
            for segment in self.segments
        ]

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""
        return Batch(self.ids.to(device), self.segments, self.packs)

    def halves(self) -> tuple[Batch, Batch]:
        """Returns two batches with half of the sequences each; the batch has at least two."""
        middle = len(self.ids) // 2
        return self.part(0, middle), self.part(middle, len(self.ids))

    def cut(self, size: int) -> list[Batch]:
        """Returns batches of at most `size` sequences; they are remembered."""
        if size not in self._cut:
            self._cut[size] = [self.part(at, at + size) for at in range(0, len(self.ids), size)]
        return self._cut[size]

    def part(self, start: int, stop: int) -> Batch:
        """Returns the batch of the sequences from `start` to `stop`."""
        if self.packs:
            return _item_batch(self.ids[start:stop], self.packs[start:stop])
        segments = []
        for segment in self.segments:
            low, high = max(segment.at.start, start), min(segment.at.stop, stop)
            if low < high:
                rows = segment.part(low - segment.at.start, high - segment.at.start).rows
                segments.append(Segment(segment.digest, rows, range(low - start, high - start)))
        return Batch(self.ids[start:stop], tuple(segments))


def layout(
    sets: Sequence[TokenSet],
    batch_tokens: int,
    *,
    device: torch.device,
    rungs: Sequence[float] = RUNGS,
) -> list[list[Batch]]:
    """Returns for each rung the batches that it adds; together they hold every sequence once.

    Args:
        sets: sets with equal content count once.
        batch_tokens: tokens that go through a model at once, approximately.
        device: the batches go there.
        rungs: see RUNGS; every set takes part in each rung, as far as it has sequences.
    """
    distinct = {token_set.digest: token_set for token_set in sets}
    ordered = sorted(distinct.values(), key=lambda s: len(s.sequences[0]))
    layered = []
    begun = dict.fromkeys(distinct, 0)
    for share in rungs:
        rows = []
        for token_set in ordered:
            start = begun[token_set.digest]
            stop = max(start, token_set.rows_until(share))
            begun[token_set.digest] = stop
            rows += [(token_set, row) for row in range(start, stop)]
        texts = [(s, row) for s, row in rows if not isinstance(s, ItemSet)]
        items = packed([(s, row) for s, row in rows if isinstance(s, ItemSet)])
        batches = [*_text_batches(texts, batch_tokens), *_item_batches(items, batch_tokens)]
        layered.append([batch.to(device) for batch in batches])
    return layered


SetRow = tuple[TokenSet, int]
"""A set and the number of one of its rows."""


def _text_batches(rows: Sequence[SetRow], batch_tokens: int) -> Iterator[Batch]:
    """Puts neighbouring rows of one length together."""
    for length, group in groupby(rows, key=lambda row: len(row[0].sequences[row[1]])):
        members = list(group)
        size = max(1, batch_tokens // length)
        for start in range(0, len(members), size):
            yield _text_batch(members[start : start + size])


def _text_batch(members: Sequence[SetRow]) -> Batch:
    segments, at = [], 0
    for digest, group in groupby(members, key=lambda member: member[0].digest):
        numbers = [row for _, row in group]
        segments.append(Segment(digest, tuple(numbers), range(at, at + len(numbers))))
        at += len(numbers)
    return Batch(torch.stack([s.sequences[row] for s, row in members]), tuple(segments))


def _item_batches(packs: Sequence[Pack], batch_tokens: int) -> Iterator[Batch]:
    """Puts packs of about one length together, longest first; texts apart from trees, which need a mask."""
    texts: list[Pack] = []
    trees: list[Pack] = []
    for pack in sorted(packs, key=lambda pack: -len(pack.row.ids)):
        (texts if pack.row.is_text else trees).append(pack)
    for remaining in (texts, trees):
        while remaining:
            size = _together([len(pack.row.ids) for pack in remaining], batch_tokens)
            ids = pad_sequence([pack.row.ids for pack in remaining[:size]], batch_first=True)
            yield _item_batch(ids, tuple(remaining[:size]))
            del remaining[:size]


def _together(lengths: Sequence[int], batch_tokens: int) -> int:
    """Returns how many sequences the first batch gets.

    Args:
        lengths: of all sequences, longest first.
    """
    wasted = 0
    for size, length in enumerate(lengths):
        wasted += lengths[0] - length
        if size and (wasted > PADDING * batch_tokens or (size + 1) * lengths[0] > batch_tokens):
            return size
    return len(lengths)


def _item_batch(ids: torch.Tensor, packs: tuple[Pack, ...]) -> Batch:
    """Makes a batch of items, with one segment for each set."""
    rows: dict[str, list[int]] = {}
    for pack in packs:
        for member in pack.members:
            rows.setdefault(member.digest, []).append(member.number)
    segments = (Segment(digest, tuple(numbers), range(len(packs))) for digest, numbers in rows.items())
    return Batch(ids, tuple(segments), packs)
