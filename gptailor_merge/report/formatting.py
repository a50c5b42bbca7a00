"""Writes numbers, names and lists as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gptailor_merge.visible_text import visible_line


def plain(objective: str) -> str:
    """Returns the metric of an objective, without the number that tells several of one metric apart.

    >>> plain("perplexity-2")
    'perplexity'
    """
    return re.sub(r"-\d+$", "", objective)


def number(value: float) -> str:
    """Writes a number with as many digits as its size asks for.

    >>> [number(value) for value in (0.12345, 12.345, 1234.5, 3.0)]
    ['0.123', '12.3', '1,234', '3']
    """
    if float(value).is_integer() and abs(value) > 1:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def direction(*, lower_is_better: bool) -> str:
    """States which way an axis improves."""
    return "lower is better" if lower_is_better else "higher is better"


def signed(value: float, form: str) -> str:
    """Writes a number with its sign; the minus is as wide as a digit.

    >>> signed(-0.125, ".1%")
    '−12.5%'
    """
    return f"{value:+{form}}".replace("-", "−")


def short(value: float) -> str:
    """Rounds a large count to three digits.

    >>> short(1_961_088)
    '1.96 M'
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return number(value)


def duration(seconds: float) -> str:
    """Writes a duration in seconds, minutes or hours.

    >>> [duration(seconds) for seconds in (22, 600, 9000)]
    ['22 s', '10 min', '2.5 h']
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def listed(items: Iterable[object]) -> str:
    """Writes a list in words.

    >>> listed([3, 4, 8])
    '3, 4 and 8'
    """
    names = [str(item) for item in items]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def wrapped(name: str, width: int = 20) -> list[str]:
    """Breaks a long name into lines, behind the characters that separate its words.

    >>> wrapped("gptailor_blimp_left_branch")
    ['gptailor_blimp_left_', 'branch']
    """
    lines = [""]
    for word in re.findall(r"[^_\s/-]+[_\s/-]*|[_\s/-]+", visible_line(name)):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return lines
