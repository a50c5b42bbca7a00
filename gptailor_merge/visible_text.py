"""Makes the characters visible by which a name could forge what is printed around it.

Names of tensors, models, tasks and files may come from strangers. An escape sequence among them could
repaint a terminal, a line break could begin a line of its own, and a mark of writing direction could show
the rest of a line backwards. Everything that is printed or logged goes through here.
"""

from __future__ import annotations

import unicodedata

_FORGING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that are not seen, but act on what is; a space is none of them."""


def visible_line(text: object) -> str:
    r"""Returns a text on one line, with escapes in the place of characters that are not seen.

    >>> print(visible_line("\x1b[2Jx: equal\nall\u202e"))
    \x1b[2Jx: equal\nall\u202e
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(map(_visible, line))


def visible_lines(text: object) -> str:
    r"""Does the same, and keeps the line breaks of a text that has several lines on purpose.

    >>> print(visible_lines("a\tb\nc\x07"))
    a\tb
    c\x07
    """
    return "\n".join(map(visible_line, str(text).split("\n")))


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _FORGING:
        return character
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int = 1000) -> str:
    """Leaves the middle of a long text out.

    >>> shortened("abcdefghij", 8)
    'abcd … ij'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … {text[len(text) - most // 4 :]}"
