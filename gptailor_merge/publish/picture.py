"""A picture of a run, as a card or a page shows it."""

from __future__ import annotations

from typing import NamedTuple


class Picture(NamedTuple):
    """An image file beside the card.

    Attributes:
        file: its name.
        title: what it shows, in a few words.
        alt: what it shows to someone who does not see it, in a sentence.
    """

    file: str
    title: str
    alt: str
