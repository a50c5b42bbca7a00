"""How a search went: its candidates in order, what they took, and the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from nevergrad.optimization.multiobjective import HypervolumeIndicator

from gptailor_merge.search.candidates import Candidate, Status
from gptailor_merge.search.front import dominates, losses

Point = tuple[float, ...]
"""What is minimised, objective by objective."""


@dataclass(frozen=True)
class Trial:
    """A candidate on the way.

    Attributes:
        loss: as the journal has it.
        tokens, seconds: of scoring, in all until then.
        best: of what was scored on everything until then; None before anything was.
    """

    number: int
    status: str
    loss: float | None
    tokens: int
    seconds: float
    best: float | None


@dataclass(frozen=True)
class Box:
    """Between the best and the worst value of each objective."""

    low: Point
    high: Point

    @staticmethod
    def around(points: Iterable[Point]) -> Box:
        """The smallest that holds all of them; there must be one."""
        columns = list(zip(*points, strict=True))
        return Box(tuple(map(min, columns)), tuple(map(max, columns)))

    def volume(self, points: Sequence[Point]) -> float:
        """The share of the box that these dominate (the hypervolume indicator)."""
        low, high = np.array(self.low), np.array(self.high)
        scaled = (np.array(points) - low) / np.where(high > low, high - low, 1.0)
        return float(HypervolumeIndicator(np.ones(len(low))).compute(scaled))


def trials(
    candidates: Sequence[Candidate], finished: Sequence[Candidate], axes: Sequence[str], box: Box | None
) -> tuple[Trial, ...]:
    """Every candidate in order.

    Args:
        finished: those that were scored on everything.
        axes: the objectives of a front; the best is then the volume of the box that it dominates.
    """
    counted = {candidate.number for candidate in finished if candidate.status != Status.REPAIRED}
    repaired = [candidate for candidate in finished if candidate.status == Status.REPAIRED]
    better = _lowest() if box is None else _dominated(axes, box)
    made: list[Trial] = []
    tokens, seconds = 0, 0.0
    best: float | None = None
    for candidate in candidates:
        tokens += candidate.tokens
        seconds += candidate.seconds
        if candidate.number in counted:
            best = better(candidate)
        made.append(Trial(candidate.number, candidate.status, candidate.loss, tokens, seconds, best))
    for number, candidate in enumerate(repaired, start=len(candidates)):
        tokens += candidate.tokens
        seconds += candidate.seconds
        best = better(candidate)
        made.append(Trial(number, candidate.status, candidate.loss, tokens, seconds, best))
    return tuple(made)


def span(made: Sequence[Trial], others: Sequence[float] = ()) -> tuple[float, float] | None:
    """The losses that are worth drawing: from the best to others', and to most candidates'."""
    drawn = sorted(
        t.loss
        for t in made
        if t.loss is not None and t.status in (Status.SCORED, Status.DROPPED, Status.REPAIRED)
    )
    reached = [trial.best for trial in made if trial.best is not None]
    if not drawn or not reached:
        return None
    low, high = min((*reached, *others)), max((*others, drawn[len(drawn) * 3 // 4]))
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _lowest() -> Callable[[Candidate], float]:
    best = math.inf

    def better(candidate: Candidate) -> float:
        nonlocal best
        best = min(best, math.inf if candidate.loss is None else candidate.loss)
        return best

    return better


def _dominated(axes: Sequence[str], box: Box) -> Callable[[Candidate], float]:
    front: list[Point] = []
    volume = 0.0

    def better(candidate: Candidate) -> float:
        nonlocal front, volume
        point = losses(candidate.scores, axes)
        if not any(other == point or dominates(other, point) for other in front):
            front = [*(other for other in front if not dominates(point, other)), point]
            volume = box.volume(front)
        return volume

    return better
