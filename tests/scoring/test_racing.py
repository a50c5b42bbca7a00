from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gptailor_merge.scoring.racing import Race, Units, compare, loss_of

TOTALS = {"a": 400, "b": 200}
WEIGHTS = {"kl": 1.0}


def candidates(means: list[float], seed: int = 0, noise: float = 0.1) -> list[Units]:
    """Units on everything: noise that all share, much larger than each one's own."""
    rng = np.random.RandomState(seed)
    shared = {digest: rng.normal(size=total) for digest, total in TOTALS.items()}
    return [
        {d: (mean + s + noise * rng.normal(size=len(s))) / 600 for d, s in shared.items()} for mean in means
    ]


def cut(units: Units, share: float) -> Units:
    return {digest: values[: int(share * len(values))] for digest, values in units.items()}


def test_pairing_sees_differences_that_noise_would_hide() -> None:
    made = candidates([1.0, 1.0, 1.1, 1.3])
    running = [cut(units, 0.25) for units in made]
    assert Race(1, WEIGHTS).hopeless(running, TOTALS) == [False, False, True, True]
    apart = candidates([1.0, 1.0, 1.1, 1.3], noise=3.0)
    assert Race(1, WEIGHTS).hopeless([cut(u, 0.25) for u in apart], TOTALS) == [False] * 4


def test_as_many_stay_as_the_optimiser_keeps() -> None:
    running = [cut(units, 0.25) for units in candidates([1.0, 1.2, 1.4, 1.6])]
    for keep, leave in ((1, 3), (2, 2), (3, 1), (4, 0), (9, 0)):
        assert sum(Race(keep, WEIGHTS).hopeless(running, TOTALS)) == leave


def test_incumbents_count() -> None:
    *incumbents, good, bad = candidates([1.0, 1.1, 0.9, 1.4])
    race = Race(2, WEIGHTS, tuple(incumbents))
    assert race.hopeless([cut(good, 0.5), cut(bad, 0.5)], TOTALS) == [False, True]
    assert race.hopeless([cut(bad, 0.5)], TOTALS) == [True]


def test_equal_candidates_all_stay() -> None:
    one = cut(candidates([1.0])[0], 0.25)
    assert Race(1, WEIGHTS).hopeless([one, dict(one), dict(one)], TOTALS) == [False] * 3


def test_what_is_not_a_number_is_not_dropped_but_beats_nobody() -> None:
    good, bad = candidates([1.0, 2.0])
    bad = {digest: np.full_like(values, np.nan) for digest, values in bad.items()}
    race = Race(1, WEIGHTS)
    assert race.hopeless([cut(good, 0.5), cut(bad, 0.5)], TOTALS) == [False, False]
    assert race.estimates([bad], {0: cut(good, 0.5)}, TOTALS) == {}


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_variance_is_that_of_repeated_draws(share: float) -> None:
    """Over random orders of the tokens, differences scatter around the true one as computed."""
    rng = np.random.RandomState(1)
    one, other = candidates([1.0, 1.3], noise=1.0)
    true = loss_of(one) - loss_of(other)
    errors: list[float] = []
    variances: list[float] = []
    for _ in range(2000):
        orders: dict[str, NDArray[np.int64]] = {d: rng.permutation(n) for d, n in TOTALS.items()}
        drawn = [cut({d: units[d][orders[d]] for d in TOTALS}, share) for units in (one, other)]
        difference, variance = compare(drawn, TOTALS)
        errors.append(difference[0, 1] - true)
        variances.append(variance[0, 1])
    assert np.mean(errors) == pytest.approx(0, abs=4 * np.std(errors) / np.sqrt(2000))
    assert np.var(errors) == pytest.approx(np.mean(variances), rel=0.15)


def test_nothing_is_left_to_chance_when_all_is_scored() -> None:
    difference, variance = compare(candidates([1.0, 1.2]), TOTALS)
    assert difference[1, 0] == pytest.approx(0.2, abs=0.05)
    assert np.all(variance == 0)


def test_the_estimate_of_a_dropped_candidate_is_near_its_loss_and_never_good_enough() -> None:
    made = candidates([1.0, 1.05, 1.4, 0.2])
    dropped = {2: cut(made[2], 0.25), 3: cut(made[3], 0.25)}
    told = Race(2, WEIGHTS).estimates(made[:2], dropped, TOTALS)
    assert told[2] == pytest.approx(loss_of(made[2]), abs=0.05)
    assert told[3] == max(loss_of(units) for units in made[:2])  # clipped: it was ruled out
