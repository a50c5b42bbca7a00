"""One finding on a model directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptailor_merge.errors import TailorError

Verdict = Literal["ok", "warn", "fail"]


SENTENCE = "THE MODEL WAS PRUNED FROM 24 LAYERS TO 18."
"""What tokenizers and models are tried on."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is sound, and one sentence that says what was found."""

    name: str
    verdict: Verdict
    sentence: str


def not_tried(because: str, *names: str) -> list[Finding]:
    """Findings that depend on something that failed."""
    return [Finding(name, "warn", f"not tried: {because}") for name in names]


def reason(error: Exception) -> str:
    """The first line that says something; transformers' messages go on for pages."""
    if isinstance(error, TailorError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([f"{type(error).__name__}:", *lines[:2]])
