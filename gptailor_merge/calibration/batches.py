"""Token sets become batches: rungs of growing share, rows of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch.nn.utils.rnn import pad_sequence

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.calibration.token_trees import ItemSet, Pack, Row, branches, packed
from gptailor_merge.composing.prefixes import Branches

RUNGS = (0.125, 0.25, 0.5, 1.0)
"""Share of every set's sequences that is scored at the end of each rung."""


PADDING = 1 / 64
"""Share of a full batch that padding may waste before sequences of items get a batch of their own."""


@dataclass(frozen=True)
class Segment:
    """Rows of a batch that belong to one set.

    Attributes:
        digest: of the set.
        rows: which sequences of the set they are.
        at: where in the batch they are; of items in which part of it, together with others.
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

    Texts are of one length and every token but the first is asked for. Sequences of items hold one row
    or more, are padded on the right, where a causal model does not look, and say what is asked.

    Attributes:
        ids: token ids [sequences, length].
        segments: which sequences they are, in order.
        packs: of items, as many as sequences; none for texts.
    """

    ids: torch.Tensor
    segments: tuple[Segment, ...]
    packs: tuple[Pack, ...] = ()
    _cut: dict[int, list[Batch]] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of items, what each sequence holds."""
        return tuple(pack.row for pack in self.packs)

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
        """The same on a device."""
        return Batch(self.ids.to(device), self.segments, self.packs)

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
        if self.packs:
            return _of_packs(self.ids[start:stop], self.packs[start:stop])
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
        texts = [(s, row) for s, row in rows if not isinstance(s, ItemSet)]
        items = packed([(s, row) for s, row in rows if isinstance(s, ItemSet)])
        batches = [*_batches_of_texts(texts, batch_tokens), *_batches_of_items(items, batch_tokens)]
        made.append([batch.to(device) for batch in batches])
    return made


_Row = tuple[TokenSet, int]
"""A set and the number of one of its rows."""


def _batches_of_texts(rows: Sequence[_Row], batch_tokens: int) -> Iterator[Batch]:
    """Neighbouring rows of one length together."""
    for length, group in groupby(rows, key=lambda row: len(row[0].sequences[row[1]])):
        members = list(group)
        size = max(1, batch_tokens // length)
        for start in range(0, len(members), size):
            yield _of_texts(members[start : start + size])


def _of_texts(members: Sequence[_Row]) -> Batch:
    segments, at = [], 0
    for digest, group in groupby(members, key=lambda item: item[0].digest):
        numbers = [row for _, row in group]
        segments.append(Segment(digest, tuple(numbers), range(at, at + len(numbers))))
        at += len(numbers)
    return Batch(torch.stack([s.sequences[row] for s, row in members]), tuple(segments))


def _batches_of_items(packs: Sequence[Pack], batch_tokens: int) -> Iterator[Batch]:
    """Those of about one length together, longest first; plain texts apart from trees, which need a mask."""
    kinds: dict[bool, list[Pack]] = {True: [], False: []}
    for pack in sorted(packs, key=lambda one: -len(one.row.ids)):
        kinds[pack.row.is_text].append(pack)
    for some in kinds.values():
        while some:
            size = _together([len(pack.row.ids) for pack in some], batch_tokens)
            ids = pad_sequence([pack.row.ids for pack in some[:size]], batch_first=True)
            yield _of_packs(ids, tuple(some[:size]))
            del some[:size]


def _together(lengths: Sequence[int], batch_tokens: int) -> int:
    """How many sequences, of these lengths from the longest on, the first batch gets."""
    wasted = 0
    for size, length in enumerate(lengths):
        wasted += lengths[0] - length
        if size and (wasted > PADDING * batch_tokens or (size + 1) * lengths[0] > batch_tokens):
            return size
    return len(lengths)


def _of_packs(ids: torch.Tensor, packs: tuple[Pack, ...]) -> Batch:
    """A batch of items; of each set one segment."""
    rows: dict[str, list[int]] = {}
    for pack in packs:
        for member in pack.members:
            rows.setdefault(member.digest, []).append(member.number)
    segments = (Segment(digest, tuple(numbers), range(len(packs))) for digest, numbers in rows.items())
    return Batch(ids, tuple(segments), packs)
