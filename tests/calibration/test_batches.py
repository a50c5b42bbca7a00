"""Every sequence is in one batch, and every set in the first rung."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.texts import TokenSet

CPU = torch.device("cpu")


def token_set(digest: str, count: int, length: int) -> TokenSet:
    ids = torch.arange(count * length).reshape(count, length) + 1000 * ord(digest)
    return TokenSet(digest, tuple(ids), digest)


def rows_of(batch: Batch, sets: dict[str, TokenSet]) -> list[tuple[str, int]]:
    """(set, row) of every row, after checking that the ids are theirs."""
    rows = []
    for segment in batch.segments:
        for row, at in zip(segment.rows, segment.at, strict=True):
            assert torch.equal(batch.ids[at], sets[segment.digest].sequences[row])
            rows.append((segment.digest, row))
    assert len(rows) == len(batch.ids)
    return rows


counts = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 9), st.integers(2, 5)), min_size=1)


@given(counts, st.integers(1, 40))
def test_every_sequence_is_in_one_batch_and_nothing_is_padded(
    shapes: dict[str, tuple[int, int]], batch_tokens: int
) -> None:
    sets = {digest: token_set(digest, *shape) for digest, shape in shapes.items()}
    rungs = layout([*sets.values(), *sets.values()], batch_tokens, device=CPU)
    rows = [row for rung in rungs for batch in rung for row in rows_of(batch, sets)]
    assert sorted(rows) == [(d, row) for d in sorted(shapes) for row in range(shapes[d][0])]
    for rung in rungs:
        for batch in rung:
            assert batch.ids.numel() <= max(batch_tokens, batch.ids.shape[1])
            if len(batch.ids) > 1:
                first, second = batch.halves()
                assert [*rows_of(first, sets), *rows_of(second, sets)] == rows_of(batch, sets)


def test_every_set_takes_part_in_the_first_rung() -> None:
    sets = [token_set("a", 16, 4), token_set("b", 3, 4), token_set("c", 1, 4)]
    rungs = layout(sets, 99, device=CPU)
    shares = [{s.digest: len(s.rows) for batch in rung for s in batch.segments} for rung in rungs]
    assert shares == [{"a": 2, "b": 1, "c": 1}, {"a": 2}, {"a": 4, "b": 1}, {"a": 8, "b": 1}]
