"""Token sets become batches: rungs of growing share, rows of one length, nothing padded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from gptailor_merge.scoring.calibration import TokenSet

RUNGS = (0.125, 0.25, 0.5, 1.0)
"""Share of every set's sequences that is scored at the end of each rung."""


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows of a batch that belong to one set.

    Attributes:
        digest: of the set.
        rows: which sequences of the set they are.
        at: where in the batch they are.
    """

    digest: str
    rows: range
    at: range

    def part(self, start: int, stop: int) -> Segment:
        """Its rows from `start` to `stop`, counted from its first."""
        return Segment(self.digest, self.rows[start:stop], self.at[start:stop])


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of one length that go through a model together.

    Attributes:
        ids: token ids [sequences, length].
        segments: which sequences they are, in order.
    """

    ids: torch.Tensor
    segments: tuple[Segment, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.ids.to(device), self.segments)

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches with half of the sequences each; of a batch of two sequences or more."""
        middle = len(self.ids) // 2
        return self.rows(0, middle), self.rows(middle, len(self.ids))

    def rows(self, start: int, stop: int) -> Batch:
        """Some of its sequences."""
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
        parts = []
        for token_set in ordered:
            start = begun[token_set.digest]
            stop = max(start, math.ceil(share * len(token_set.sequences)))
            begun[token_set.digest] = stop
            parts.append((token_set, range(start, stop)))
        made.append([batch.to(device) for batch in _batches(parts, batch_tokens)])
    return [batches for batches in made if batches] or [[]]


def _batches(parts: Sequence[tuple[TokenSet, range]], batch_tokens: int) -> Iterator[Batch]:
    rows = [(token_set, row) for token_set, wanted in parts for row in wanted]
    for length, group in groupby(rows, key=lambda item: len(item[0].sequences[item[1]])):
        members = list(group)
        size = max(1, batch_tokens // length)
        for start in range(0, len(members), size):
            yield _batch(members[start : start + size])


def _batch(members: Sequence[tuple[TokenSet, int]]) -> Batch:
    ids = torch.stack([token_set.sequences[row] for token_set, row in members])
    segments, at = [], 0
    for digest, group in groupby(members, key=lambda item: item[0].digest):
        rows = [row for _, row in group]
        segments.append(Segment(digest, range(rows[0], rows[-1] + 1), range(at, at + len(rows))))
        at += len(rows)
    return Batch(ids, tuple(segments))
