"""The prompts that base and best recipe continue at the end of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gptailor_merge.objectives.config_types import Section

PROMPTS = (
    "Once upon a time, there was a little girl who",
    "The capital of France is",
    "To find the area of a rectangle, you multiply",
    "def is_prime(n):\n",
    "The sky is blue because",
)
"""A story, a fact, a calculation, a program and an explanation."""


class WritesSection(Section):
    """Prompts that the base and the best recipe continue when all else is done; they choose nothing.

    Attributes:
        tokens: written after each prompt, at most, always the likeliest next one; 0 writes nothing.
        prompts: are continued as they are, without a chat template.
    """

    tokens: Annotated[int, Field(ge=0)] = 40
    prompts: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, strict=False)] = (
        PROMPTS
    )
