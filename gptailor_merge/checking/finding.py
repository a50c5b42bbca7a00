"""A finding: the result of one check on a model directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptailor_merge.errors import TailorError
from gptailor_merge.models.remote_code import REFUSAL, words_of

SENTENCE = "THE MODEL WAS PRUNED FROM 24 LAYERS TO 18."
"""The text that tokenizers and models are tried on."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked, as the table of `gptailor check` lists it.
        verdict: "warn" does not make a model unsound; a check that was not tried warns.
        sentence: what the check found.
    """

    name: str
    verdict: Literal["ok", "warn", "fail"]
    sentence: str


def not_tried(because: str, *names: str) -> list[Finding]:
    """Returns the findings of checks that cannot be tried because something else failed."""
    return [Finding(name, "warn", f"not tried: {because}") for name in names]


def reason(error: Exception) -> str:
    """Returns the first lines of an error that say something; transformers' messages go on for pages."""
    if isinstance(error, TailorError):
        return str(error)
    if (text := words_of(error)) == REFUSAL:
        return text
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([f"{type(error).__name__}:", *lines[:2]])
