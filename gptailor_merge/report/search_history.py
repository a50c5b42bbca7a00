"""Tells how a search went: its candidates in order, what they cost, and the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from nevergrad.optimization.multiobjective import HypervolumeIndicator

from gptailor_merge.search.candidates import REFINED, Candidate, Status
from gptailor_merge.search.front import dominates, losses

Losses = tuple[float, ...]
"""One value to minimise for each objective."""


@dataclass(frozen=True)
class Trial:
    """A candidate, with what the search had spent and reached by then.

    Attributes:
        loss: the loss in the journal.
        tokens, seconds: scoring by all candidates up to this one.
        best: the best of what was scored on everything up to this candidate; None before the first.
    """

    number: int
    status: str
    loss: float | None
    tokens: int
    seconds: float
    best: float | None


@dataclass(frozen=True)
class Box:
    """The box between the best and the worst value of each objective."""

    low: Losses
    high: Losses

    @staticmethod
    def around(points: Iterable[Losses]) -> Box:
        """Returns the smallest box that holds all points; there must be at least one."""
        columns = list(zip(*points, strict=True))
        return Box(tuple(map(min, columns)), tuple(map(max, columns)))

    def volume(self, points: Sequence[Losses]) -> float:
        """Returns the share of the box that these points dominate (the hypervolume indicator).

        >>> Box((0.0, 0.0), (4.0, 1.0)).volume([(1.0, 0.5)])
        0.375
        """
        low, high = np.array(self.low), np.array(self.high)
        scaled = (np.array(points) - low) / np.where(high > low, high - low, 1.0)
        return float(HypervolumeIndicator(np.ones(len(low))).compute(scaled))


def trials(
    candidates: Sequence[Candidate], finished: Sequence[Candidate], axes: Sequence[str], box: Box | None
) -> tuple[Trial, ...]:
    """Returns every candidate in order; repaired and tuned ones come last.

    Args:
        finished: the candidates that were scored on everything.
        axes: the objectives of a front; empty where one recipe is sought.
        box: for a front, the box whose dominated share counts as the best; None for the lowest loss.
    """
    counted = {candidate.number for candidate in finished if candidate.status not in REFINED}
    refined = [candidate for candidate in finished if candidate.status in REFINED]
    best_after = _lowest() if box is None else _dominated(axes, box)
    history: list[Trial] = []
    tokens, seconds = 0, 0.0
    best: float | None = None
    for candidate in candidates:
        tokens += candidate.tokens
        seconds += candidate.seconds
        if candidate.number in counted:
            best = best_after(candidate)
        history.append(Trial(candidate.number, candidate.status, candidate.loss, tokens, seconds, best))
    for number, candidate in enumerate(refined, start=len(candidates)):
        tokens += candidate.tokens
        seconds += candidate.seconds
        best = best_after(candidate)
        history.append(Trial(number, candidate.status, candidate.loss, tokens, seconds, best))
    return tuple(history)


def span(history: Sequence[Trial], others: Sequence[float] = ()) -> tuple[float, float] | None:
    """Returns the range of losses that is worth drawing; None before anything was scored on everything.

    It holds the best, the losses of other runs, and three quarters of the candidates.
    """
    drawn = sorted(
        trial.loss
        for trial in history
        if trial.loss is not None and trial.status in (Status.SCORED, Status.DROPPED, *REFINED)
    )
    reached = [trial.best for trial in history if trial.best is not None]
    if not drawn or not reached:
        return None
    low, high = min((*reached, *others)), max((*others, drawn[len(drawn) * 3 // 4]))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _lowest() -> Callable[[Candidate], float]:
    best = math.inf

    def best_after(candidate: Candidate) -> float:
        nonlocal best
        best = min(best, math.inf if candidate.loss is None else candidate.loss)
        return best

    return best_after


def _dominated(axes: Sequence[str], box: Box) -> Callable[[Candidate], float]:
    front: list[Losses] = []
    volume = 0.0

    def best_after(candidate: Candidate) -> float:
        nonlocal front, volume
        point = losses(candidate.scores, axes)
        if not any(other == point or dominates(other, point) for other in front):
            front = [*(other for other in front if not dominates(point, other)), point]
            volume = box.volume(front)
        return volume

    return best_after
