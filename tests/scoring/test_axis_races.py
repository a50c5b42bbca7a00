"""Candidates leave where others dominate them for sure, and gates where they break a bound for sure."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from gptailor_merge.objectives.scores import Weights
from gptailor_merge.scoring.axis_races import FrontRace, GateRace, MeasureLimit, of_axis
from gptailor_merge.scoring.racing import Units, loss_of
from tests.scoring.test_racing import TOTALS, candidates, cut

AXES = ("kl", "size")
ALL = {**TOTALS, "model": 1}


def contestants(
    race: FrontRace, points: list[tuple[float, float]], share: float, seed: int = 0
) -> list[Units]:
    """Units of candidates with these means on two axes: tokens that share their noise, and an exact cost."""
    quality = [cut(units, share) for units in candidates([kl for kl, _ in points], seed)]

    def of(weights: Weights, number: int) -> Units:
        return quality[number] if "kl" in weights else {"model": np.array([points[number][1]])}

    return [race.units(lambda weights, n=n: of(weights, n)) for n in range(len(points))]


def test_what_is_worse_on_both_axes_for_sure_leaves() -> None:
    points = [(1.0, 5.0), (1.3, 5.0), (1.3, 4.0), (1.0, 6.0), (1.001, 5.0), (0.7, 9.0)]
    race = FrontRace(1, {"kl": 1.0}, axes=AXES)
    running = contestants(race, points, 0.25)
    assert race.hopeless(running, ALL) == [False, True, False, False, False, False]
    # The fourth is larger than the first, but hardly better or worse: that may be chance.
    assert FrontRace(2, {"kl": 1.0}, axes=AXES).hopeless(running, ALL) == [False, True, *[False] * 4]
    assert FrontRace(3, {"kl": 1.0}, axes=AXES).hopeless(running, ALL) == [False] * 6
    assert race.hopeless([], ALL) == []


def test_equal_candidates_and_those_that_are_no_numbers_stay() -> None:
    race = FrontRace(1, {"kl": 1.0}, axes=AXES)
    (units,) = contestants(race, [(1.0, 5.0)], 0.5)
    (worse,) = contestants(race, [(2.0, 6.0)], 0.5)
    lost = {key: np.full_like(values, np.nan) for key, values in worse.items()}
    assert race.hopeless([units, dict(units), lost], ALL) == [False] * 3


def test_incumbents_dominate_and_their_losses_carry_the_estimates() -> None:
    race = FrontRace(1, {"kl": 1.0}, axes=AXES)
    whole = contestants(race, [(1.0, 5.0), (3.0, 1.0), (1.4, 6.0)], 1.0)
    (_, _, dropped) = contestants(race, [(1.0, 5.0), (3.0, 1.0), (1.4, 6.0)], 0.25)
    raced = FrontRace(1, {"kl": 2.0}, tuple(whole[:2]), axes=AXES)
    assert pickle.loads(pickle.dumps(raced)).hopeless([dropped], ALL) == [True]
    (means,) = raced.means([], {7: dropped}, ALL).values()
    assert means["size"] == 6.0
    assert means["kl"] == pytest.approx(loss_of(of_axis(whole[2], 0)), abs=0.02)
    assert raced.estimates([], {7: dropped}, ALL)[7] == pytest.approx(2 * means["kl"])


def test_without_a_finished_candidate_the_units_so_far_are_extrapolated() -> None:
    race = FrontRace(1, {"kl": 1.0}, axes=AXES)
    (units,) = contestants(race, [(1.0, 5.0)], 0.5)
    halves = sum(2 * values.sum() for values in of_axis(units, 0).values())
    assert race.means([], {0: units}, ALL)[0] == {"kl": pytest.approx(halves), "size": 5.0}


@pytest.mark.parametrize(
    ("limit", "leaves"),
    [
        (MeasureLimit("plain", 1.2, is_upper=True), [False, False, True]),
        (MeasureLimit("plain", 0.5, is_upper=True), [True, True, True]),
        (MeasureLimit("negated", -1.2, is_upper=False), [False, False, True]),
        (MeasureLimit("perplexity", np.exp(1.2), is_upper=True), [False, False, True]),
    ],
)
def test_a_bound_that_is_broken_beyond_doubt_ends_the_scoring(
    limit: MeasureLimit, leaves: list[bool]
) -> None:
    """The base carries the noise that all share, which is larger than what they differ by."""
    base, *whole = candidates([1.0, 0.9, 1.21, 1.5])
    shifted = loss_of(base) - 1.0
    race = GateRace(
        0, {}, ({f"0 {d}": v - shifted / 600 for d, v in base.items()},), axes=("g",), limits=(limit,)
    )
    running = [{f"0 {d}": v - shifted / 600 for d, v in cut(units, 0.25).items()} for units in whole]
    assert pickle.loads(pickle.dumps(race)).hopeless(running, TOTALS) == leaves
    (means,) = race.means([], {5: running[2]}, TOTALS).values()
    assert means["g"] == pytest.approx(1.5, abs=0.03)


def test_few_units_break_no_bound_and_an_exact_cost_does() -> None:
    limits = (MeasureLimit("plain", 1.0, is_upper=True), MeasureLimit("count", 5.0, is_upper=True))
    base = {"0 items": np.full(20, 0.5), "1 model": np.array([9.0])}
    race = GateRace(0, {}, (base,), axes=("gate", "size"), limits=limits)
    totals = {"items": 20, "model": 1}
    few = {"0 items": np.full(2, 9.0), "1 model": np.array([5.0])}
    lost = {"0 items": np.full(20, np.nan), "1 model": np.array([5.0])}
    assert race.hopeless([few, {**few, "1 model": np.array([6.0])}, lost], totals) == [False, True, False]
