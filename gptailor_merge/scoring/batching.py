"""Token sets become batches: rungs of growing share, rows of about one length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from gptailor_merge.composing.prefixes import Branches
from gptailor_merge.scoring.calibration import TokenSet
from gptailor_merge.scoring.items import ItemSet, Row, branches

RUNGS = (0.125, 0.25, 0.5, 1.0)
"""Share of every set's sequences that is scored at the end of each rung."""
PADDED = 8
"""Rows of items whose lengths differ by less may share a batch."""


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows of a batch that belong to one set.

    Attributes:
        digest: of the set.
        rows: which sequences of the set they are.
        at: where in the batch they are.
    """

    digest: str
    rows: Sequence[int]
    at: range

    def part(self, start: int, stop: int) -> Segment:
        """Its rows from `start` to `stop`, counted from its first."""
        return Segment(self.digest, self.rows[start:stop], self.at[start:stop])


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences that go through a model together.

    Texts are of one length and every token but the first is asked for. Rows of items are padded on
    the right, where a causal model does not look, and say themselves what is asked.

    Attributes:
        ids: token ids [sequences, length].
        segments: which sequences they are, in order.
        rows: of items, as many as sequences; none for texts.
    """

    ids: torch.Tensor
    segments: tuple[Segment, ...]
    rows: tuple[Row, ...] = ()
    _cut: dict[int, list[Batch]] = field(default_factory=dict, repr=False)

    @cached_property
    def branches(self) -> Branches | None:
        """What each token follows, where the rows are no plain texts."""
        made = branches(self.rows, self.ids.shape[1])
        return made and Branches(*(part.to(self.ids.device) for part in made))

    @cached_property
    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of items: (sequence, position) of everything that predicts a token, in order."""
        counts = torch.tensor([len(row.places) for row in self.rows])
        sequences = torch.arange(len(self.rows)).repeat_interleave(counts)
        places = torch.cat([row.places for row in self.rows])
        return sequences.to(self.ids.device), places.to(self.ids.device)

    @cached_property
    def questions(self) -> list[tuple[Segment, torch.Tensor, torch.Tensor]]:
        """Of items, for each segment: index into `places` of each token asked for, and the token."""
        starts = [0]
        for row in self.rows:
            starts.append(starts[-1] + len(row.places))
        found = []
        for segment in self.segments:
            at = torch.cat([self.rows[n].at + starts[n] for n in segment.at])
            asked = torch.cat([self.rows[n].asked for n in segment.at])
            found.append((segment, at.to(self.ids.device), asked.to(self.ids.device)))
        return found

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.ids.to(device), self.segments, self.rows)

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches with half of the sequences each; of a batch of two sequences or more."""
        middle = len(self.ids) // 2
        return self.part(0, middle), self.part(middle, len(self.ids))

    def cut(self, size: int) -> list[Batch]:
        """Batches of no more sequences than `size`, remembered."""
        if size not in self._cut:
            self._cut[size] = [self.part(at, at + size) for at in range(0, len(self.ids), size)]
        return self._cut[size]

    def part(self, start: int, stop: int) -> Batch:
        """Some of its sequences."""
        segments = []
        for segment in self.segments:
            low, high = max(segment.at.start, start), min(segment.at.stop, stop)
            if low < high:
                rows = segment.part(low - segment.at.start, high - segment.at.start).rows
                segments.append(Segment(segment.digest, rows, range(low - start, high - start)))
        return Batch(self.ids[start:stop], tuple(segments), self.rows[start:stop])


def layout(
    sets: Sequence[TokenSet],
    batch_tokens: int,
    *,
    device: torch.device,
    rungs: Sequence[float] = RUNGS,
) -> list[list[Batch]]:
    """For each rung the batches that it adds; together they hold every sequence once.

    Args:
        sets: those with equal content count once.
        batch_tokens: about so many tokens go through the model at once.
        rungs: see RUNGS; every set takes part in each rung, as far as it has sequences.
    """
    distinct = {token_set.digest: token_set for token_set in sets}
    ordered = sorted(distinct.values(), key=lambda s: len(s.sequences[0]))
    made = []
    begun = dict.fromkeys(distinct, 0)
    for share in rungs:
        rows = []
        for token_set in ordered:
            start = begun[token_set.digest]
            stop = max(start, token_set.rows_until(share))
            begun[token_set.digest] = stop
            rows += [(token_set, row) for row in range(start, stop)]
        texts = [row for row in rows if not isinstance(row[0], ItemSet)]
        items = sorted((row for row in rows if isinstance(row[0], ItemSet)), key=_kind_of_item)
        batches = [
            *_batches(texts, batch_tokens, _kind_of_text),
            *_batches(items, batch_tokens, _kind_of_item),
        ]
        made.append([batch.to(device) for batch in batches])
    return made


_Row = tuple[TokenSet, int]
"""A set and the number of one of its rows."""


def _kind_of_text(row: _Row) -> tuple[bool, int]:
    token_set, number = row
    return True, len(token_set.sequences[number])


def _kind_of_item(row: _Row) -> tuple[bool, int]:
    token_set, number = row
    assert isinstance(token_set, ItemSet)
    return token_set.rows[number].is_text, -(-len(token_set.sequences[number]) // PADDED) * PADDED


def _batches(
    rows: Sequence[_Row], batch_tokens: int, kind: Callable[[_Row], tuple[bool, int]]
) -> Iterator[Batch]:
    """Neighbouring rows of one kind together."""
    for (_, length), group in groupby(rows, key=kind):
        members = list(group)
        size = max(1, batch_tokens // length)
        for start in range(0, len(members), size):
            yield _batch(members[start : start + size])


def _batch(members: Sequence[_Row]) -> Batch:
    ids = pad_sequence([token_set.sequences[row] for token_set, row in members], batch_first=True)
    segments, at = [], 0
    for digest, group in groupby(members, key=lambda item: item[0].digest):
        numbers = [row for _, row in group]
        segments.append(Segment(digest, tuple(numbers), range(at, at + len(numbers))))
        at += len(numbers)
    rows = tuple(s.rows[row] for s, row in members if isinstance(s, ItemSet))
    return Batch(ids, tuple(segments), rows)
