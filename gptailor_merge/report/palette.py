"""Defines the colours of the figures, light and dark.

The hues of the members are M. Okabe and K. Ito's, which people with any colour vision can tell apart. Text
has a contrast of at least 4.5 to its background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

VARIANTS = 6
"""The number of variants that have a colour of their own; the colours of more repeat."""


@dataclass(frozen=True)
class Theme:
    """The colours of one appearance.

    Attributes:
        surface: the ground of pages and pictures.
        tile: the ground of boxes on the surface.
        ink, muted: text.
        line: grids and borders.
        accent: the recipe that was found.
        base: the base model.
        variants: the other members in their order; the colours repeat.
        removed: a layer that is gone.
        outcomes: status of a candidate -> colour.
    """

    surface: str
    tile: str
    ink: str
    muted: str
    line: str
    accent: str
    base: str
    removed: str
    variants: tuple[str, ...]
    outcomes: dict[str, str]

    def members(self, names: Sequence[str]) -> dict[str, str]:
        """Member name -> colour; the first name is the base's."""
        return {name: self.named[key] for name, key in member_keys(names).items()}

    @property
    def named(self) -> dict[str, str]:
        """Name that style sheets can use -> colour, for every colour."""
        plain = ("surface", "tile", "ink", "muted", "line", "accent", "base", "removed")
        return {
            **{name: getattr(self, name) for name in plain},
            **{f"variant-{number}": colour for number, colour in enumerate(self.variants)},
            **{f"outcome-{status}": colour for status, colour in self.outcomes.items()},
        }


def mixed(ground: str, colour: str, share: float) -> str:
    """Mixes a share of a colour into a ground.

    >>> mixed("#ffffff", "#000000", 0.5)
    '#808080'
    """
    pairs = zip(_channels(ground), _channels(colour), strict=True)
    return "#" + "".join(f"{round(below + share * (above - below)):02x}" for below, above in pairs)


def readable(ground: str) -> str:
    """Returns black or white, whichever stands out more on a ground; its contrast is always 4.5 or more."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, ground))


def contrast(first: str, second: str) -> float:
    """Returns the contrast ratio of two colours by WCAG 2, from 1 to 21."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [channel / 255 for channel in _channels(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _channels(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def member_keys(names: Sequence[str]) -> dict[str, str]:
    """Member name -> name of its colour; the first name is the base's."""
    keys = ["base", *(f"variant-{number % VARIANTS}" for number in range(len(names) - 1))]
    return dict(zip(names, keys, strict=True))


LIGHT = Theme(
    surface="#ffffff",
    tile="#f5f6f8",
    ink="#1b1e24",
    muted="#5b6270",
    line="#e1e4e9",
    accent="#2f4fc4",
    base="#6b7586",
    removed="#c7ccd4",
    variants=("#d55e00", "#00835f", "#a8559a", "#b07d00", "#2c83b8", "#7a4b12"),
    outcomes={
        "scored": "#2f4fc4",
        "dropped": "#748de3",
        "probe": "#6b7586",
        "duplicate": "#c7ccd4",
        "gated": "#b07d00",
        "failed": "#c0392b",
        "repaired": "#00835f",
        "tuned": "#a8559a",
        "healed": "#d55e00",
    },
)


DARK = Theme(
    surface="#14161b",
    tile="#1e2128",
    ink="#eceef2",
    muted="#a3abb8",
    line="#30343d",
    accent="#8fa6ff",
    base="#98a2b3",
    removed="#4a505c",
    variants=("#f28a3c", "#2cc39a", "#d78bc9", "#e0b040", "#63b8ea", "#c79a63"),
    outcomes={
        "scored": "#8fa6ff",
        "dropped": "#5f70b8",
        "probe": "#98a2b3",
        "duplicate": "#4a505c",
        "gated": "#e0b040",
        "failed": "#ff7b6b",
        "repaired": "#2cc39a",
        "tuned": "#d78bc9",
        "healed": "#ff9248",
    },
)
