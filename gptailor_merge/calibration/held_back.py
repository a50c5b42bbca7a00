"""Divides texts into those that something is fitted to, and those that tell whether the fit helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.digests import digest_of_bytes
from gptailor_merge.errors import DataError

EVERY = 4
"""Every fourth sequence is held back from a fit."""


def has_enough(sets: Sequence[TokenSet]) -> bool:
    """Tells whether a sequence can be held back."""
    return any(len(token_set.sequences) >= EVERY for token_set in sets)


def divided(sets: Sequence[TokenSet]) -> tuple[list[TokenSet], list[TokenSet]]:
    """Returns the sequences of each set that are fitted to, and those that are held back.

    Sets with fewer than EVERY sequences are fitted to as a whole.

    Raises:
        DataError: no sequence can be held back.
    """
    if not has_enough(sets):
        raise DataError(
            f"no file has {EVERY} sequences, every {EVERY}th of which is held back to tell what helps; "
            "give more --tokens or a shorter --sequence-length"
        )
    held_back = [_part(s, s.sequences[EVERY - 1 :: EVERY]) for s in sets if len(s.sequences) >= EVERY]
    fitted = [[ids for i, ids in enumerate(s.sequences) if i % EVERY != EVERY - 1] for s in sets]
    return [_part(s, ids) for s, ids in zip(sets, fitted, strict=True)], held_back


def shortened(sets: Sequence[TokenSet], tokens: int) -> list[TokenSet]:
    """Returns the first sequences of each set, which have about as many tokens in all.

    A set keeps at least EVERY sequences, if it has them, so that one can be held back.
    """
    total = sum(token_set.tokens for token_set in sets)
    return [
        _part(token_set, token_set.sequences[: max(EVERY, token_set.rows_until(min(1.0, tokens / total)))])
        for token_set in sets
    ]


def beyond(whole: TokenSet, tokens: int, most: int) -> TokenSet:
    """Returns the sequences of a set after its first tokens, so that what is fitted to them can be scored.

    Where fewer than EVERY sequences come after, all stay.

    Args:
        tokens: those that are scored.
        most: tokens of the sequences that are returned.
    """
    length = whole.sequences[0].numel()
    scored, count = -(-tokens // length), max(1, most // length)
    if len(whole.sequences) - scored < EVERY:
        scored = 0
    return _part(whole, whole.sequences[scored : scored + count])


def _part(whole: TokenSet, sequences: Sequence[torch.Tensor]) -> TokenSet:
    content = torch.stack(list(sequences)).numpy().tobytes()
    return replace(whole, sequences=tuple(sequences), digest=digest_of_bytes(content))
