"""What a part of gpu.py is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptailor_merge import Recipe

Note = Callable[[dict[str, Any]], None]
"""Hands over results; what it is given is laid over what it was given before, one level deep."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        config: the search config, without a target.
        texts: has calibration/, held-out/ and train/.
        depth: the layers of the family.
        directory: what parts write for later parts.
        recipes: method -> the first seed's recipe, repaired and tuned.
    """

    config: dict[str, Any]
    texts: Path
    depth: int
    device: str
    tiny: bool
    directory: Path
    recipes: dict[str, Recipe] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part of the command.

    Attributes:
        seconds: its bound.
        run: measures, and hands over each result as soon as it is known.
        show: prints the results.
        only_if_named: True for parts that are not run unless `--part` names them.
    """

    name: str
    seconds: float
    run: Callable[[Subject, Note], None]
    show: Callable[[dict[str, Any], Subject], None] = lambda results, subject: None
    only_if_named: bool = False
