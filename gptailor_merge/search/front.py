"""The front of a search with several objectives, and the rules that pick one of its candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search_section import KNEE, RULE, RULES

NAMED_DIGITS = 8
"""Digits of a digest in the name of a file."""


def losses(scores: Scores, axes: Sequence[str]) -> tuple[float, ...]:
    """Returns what is minimised, objective by objective."""
    return tuple(Score.total(list(scores[name].values())).mean for name in axes)


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Tells whether the first is nowhere worse than the second and somewhere better; lower is better.

    >>> dominates((1.0, 2.0), (1.0, 3.0)), dominates((1.0, 2.0), (2.0, 1.0))
    (True, False)
    """
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


@dataclass(frozen=True)
class FrontCandidate:
    """A candidate that no candidate dominates.

    Attributes:
        losses: one for each objective, lower is better.
    """

    candidate: Candidate
    losses: tuple[float, ...]

    @cached_property
    def layers(self) -> int:
        """The number of layers of its model."""
        return len(self.candidate.plan.slots)

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return f"{self.layers:02d}-layers-{self.candidate.digest[:NAMED_DIGITS]}"


def front(candidates: Iterable[Candidate], axes: Sequence[str]) -> list[FrontCandidate]:
    """Returns the candidates that no other dominates, the smallest first; of equal ones the first."""
    points: dict[tuple[float, ...], FrontCandidate] = {}
    for candidate in candidates:
        point = FrontCandidate(candidate, losses(candidate.scores, axes))
        points.setdefault(point.losses, point)
    best = [p for p in points.values() if not any(dominates(rival, p.losses) for rival in points)]
    return sorted(best, key=lambda point: (point.layers, point.losses))


def check_rule(rule: str, axes: Sequence[str], sizes: Sequence[int]) -> None:
    """Refuses a rule that no front of this search can answer.

    Raises:
        ConfigError: the rule names an objective or a size that is not searched, or one recipe is sought.
    """
    kind, argument = _parse(rule)
    message = ""
    if kind != KNEE and not axes:
        message = "one recipe is sought, and there is no front to pick from"
    elif kind == "best" and argument not in axes:
        message = f"no such objective; known are {', '.join(axes)}"
    elif kind == "layers" and int(argument) not in sizes:
        message = f"no such size; searched are {', '.join(map(str, sizes))} layers"
    if message:
        raise ConfigError(Problem(("search", "pick"), f"{message}, found {rule!r}"))


def pick(points: Sequence[FrontCandidate], rule: str, axes: Sequence[str]) -> FrontCandidate:
    """Returns the point of a front that a rule chooses.

    Args:
        rule: `knee`, the lowest sum of the objectives, each scaled to [0, 1] over the front, which is
            the farthest from the plane through the worst corners (I. Das, On characterizing the "knee"
            of the Pareto curve, 1999); `best:OBJECTIVE`; or `layers=N`, the knee of those with N layers.

    Raises:
        ConfigError: the front does not have the objective or the size.
    """
    kind, argument = _parse(rule)
    sizes = sorted({point.layers for point in points})
    check_rule(rule, axes, sizes)
    if kind == "best":
        return min(points, key=lambda point: point.losses[axes.index(argument)])
    if kind == "layers":
        points = [point for point in points if point.layers == int(argument)]
    values = np.array([point.losses for point in points])
    low, high = values.min(axis=0), values.max(axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    return points[int(scaled.sum(axis=1).argmin())]


def _parse(rule: str) -> tuple[str, str]:
    """Splits a rule, see config.RULE, into its kind and its objective or size."""
    match = RULE.fullmatch(rule)
    if match is None:
        raise ConfigError(Problem(("search", "pick"), f"expected {RULES}, found {rule!r}"))
    return match[0].split(":")[0].split("=")[0], match[1] or match[2] or ""
