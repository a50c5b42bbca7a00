"""Writes text into Markdown, where a name that a stranger chose must stay a name."""

from __future__ import annotations

import re

from gptailor_merge.visible_text import visible_line


class Markdown(str):
    """A text that is Markdown already, and not to be escaped."""

    __slots__ = ()


_ACTIVE = re.compile(
    r"""[\\`*\[\]<|~$@]      # what formats, links, ends a cell, calls for mathematics, or mentions somebody
    | (?<![A-Za-z0-9])_ | _(?![A-Za-z0-9])   # inside a word it formats nothing
    | &(?=[#A-Za-z])         # an entity
    | :(?=//) | (?<=www)\.   # an address, which becomes a link by itself
    | :(?=[a-z0-9_+-]+:)     # an emoji
    """,
    re.VERBOSE,
)


_ENTITIES = {"<": "&lt;", "&": "&amp;", ":": "&#58;", ".": "&#46;", "@": "&#64;"}


_BEGINNING = re.compile(r"(\s*\d*)([#>+=.)-])")
"""Matches what makes a heading, a quotation or a list where a line begins."""


def plain_text(text: str) -> str:
    r"""Returns Markdown that shows a text as it is, on one line.

    >>> print(plain_text("a_name <img src=x> [x](http://y) *z*"))
    a_name &lt;img src=x> \[x\](http&#58;//y) \*z\*
    >>> print(plain_text("# no heading"))
    \# no heading
    """
    if isinstance(text, Markdown):
        return " ".join(text.split())
    line = _ACTIVE.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), visible_line(text))
    return _BEGINNING.sub(r"\1\\\2", line, count=1) if _BEGINNING.match(line) else line


def cell(text: str) -> str:
    """Returns a text as the cell of a table has it, where a sign at its beginning means nothing."""
    escaped = plain_text(text)
    return (
        escaped
        if isinstance(text, Markdown) or not _BEGINNING.match(visible_line(text))
        else escaped.replace("\\", "", 1)
    )


def code(text: str) -> str:
    """Returns a text between backticks, more of them than it has in one place itself.

    >>> code("org/base"), code("a`b")
    ('`org/base`', '`` a`b ``')
    """
    line = visible_line(text)
    if "`" not in line:
        return f"`{line}`"
    ticks = "`" * (_longest_run(line) + 1)
    return f"{ticks} {line} {ticks}"


def fence(text: str) -> str:
    """Returns the line before and behind a block that holds a text, which none of its lines ends."""
    return "`" * max(3, _longest_run(text) + 1)


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
