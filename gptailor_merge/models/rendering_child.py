"""The program of the child process that renders chat templates; see chat_renderer.

A chat template is a program that a stranger wrote. transformers runs it in jinja2's sandbox, which keeps it
from files and from Python, but not from looping or from filling memory. This process bounds both, and
has neither the environment of its parent nor anything to lose.

It reads lines of JSON and answers each with a line: first `{"template", "variables"}`, then for every
conversation `{"messages", "options"}`, which is answered by `{"text"}` or `{"error"}`.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime, tzinfo
from typing import Any

MEMORY = 2**30
"""Bytes of address space that the process may take."""


SECONDS = 1.0
"""The longest that a template may work on one conversation; a machine that is busy does not shorten it."""


LONGEST_TEXT = 2**24
"""Characters in the longest text that is sent back."""


class OneDay(datetime):
    """The day that templates are told: a text, and its score, must not depend on when it is rendered."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> OneDay:
        """Returns the day that Llama's templates name where they are told none."""
        return cls(2024, 7, 26, tzinfo=tz)


def main() -> None:
    """Serves the parent until it closes the pipe."""
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = OneDay
    _limit_memory()
    settings = json.loads(sys.stdin.readline())
    _answer({})
    for line in sys.stdin:
        request = json.loads(line)
        _allow(SECONDS)
        try:
            rendered, _ = chat_template_utils.render_jinja_template(
                conversations=[request["messages"]],
                chat_template=settings["template"],
                **{**settings["variables"], **request["options"]},
            )
            too_long = {"error": f"its text has more than {LONGEST_TEXT:,} characters"}
            answer = {"text": rendered[0]} if len(rendered[0]) <= LONGEST_TEXT else too_long
        except MemoryError:
            answer = {"error": "it needs too much memory"}
        except Exception as error:  # a program of a stranger raises what it likes
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        _allow(0)
        _answer(answer)


def _answer(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _limit_memory() -> None:
    """Bounds memory and keeps the process from writing files, where the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    except (ImportError, OSError, ValueError):  # Windows has no limits, macOS none of memory
        pass


def _allow(seconds: float) -> None:
    """Lets the process work so long and ends it then, where the system can; 0 takes the limit away."""
    if hasattr(signal, "setitimer"):  # the default of its signal is to end the process
        signal.setitimer(signal.ITIMER_PROF, seconds)
