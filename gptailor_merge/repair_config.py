"""The repairs that a search config asks for, and how runs of 0.1 asked for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gptailor_merge.objectives.config_types import Data, Section, absolute_files

LENGTH = 512
"""Tokens of a sequence of `repair.data`."""


FITTED = ("everywhere", "texts", "tokens", "sequence_length")
"""Keys that say how maps are fitted; their defaults have changed since 0.1."""


class RepairSection(Section):
    """Repair of the best recipes when the search is over.

    Attributes:
        finalists: recipes that are repaired, the best for each choice of layers; of a front all recipes
            are. 0 repairs none.
        everywhere: repair also behind slots where no layer is missing; best does so with the best recipe,
            or those on the front, after all were repaired at their cuts on fewer tokens.
        data: texts that maps are fitted to; default those of the objectives.
        texts: own takes sequences of the texts that are not held out; scored takes those that objectives
            score, as runs of 0.1 did.
        tokens: taken of the texts in all, as far as they have them.
        sequence_length: tokens that a model sees at once; default that of the objectives, or 512.
    """

    finalists: Annotated[int, Field(ge=0)] = 8
    everywhere: bool | Literal["best"] = "best"
    data: Data | None = None
    texts: Literal["own", "scored"] = "own"
    tokens: Annotated[int, Field(ge=2)] = 65536
    sequence_length: Annotated[int, Field(ge=2)] | None = None

    def resolved(self, directory: Path) -> RepairSection:
        """Returns the section with absolute paths; relative ones start at `directory`."""
        if self.data is None:
            return self
        return self.model_copy(update={"data": absolute_files(self.data, directory)})


def to_record(repair: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section as runs record it: 0.1 took the texts that objectives score, and did not say so.

    >>> to_record({"tokens": 64, "texts": "scored"}), to_record({"tokens": 64, "texts": "own"})
    ({'tokens': 64}, {'tokens': 64, 'texts': 'own'})
    """
    return {key: value for key, value in repair.items() if (key, value) != ("texts", "scored")}


def of_record(repair: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `to_record` made a record of.

    >>> of_record({"tokens": 64})
    {'tokens': 64, 'texts': 'scored'}
    """
    return dict(repair) if {"texts", "data"} & repair.keys() else {**repair, "texts": "scored"}
