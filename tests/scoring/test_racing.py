from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gptailor_merge.scoring.racing import FEWEST, Race, Units, compare, loss_of

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
    whole = candidates([1.0, 1.0, 1.1, 1.3])
    running = [cut(units, 0.25) for units in whole]
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
    units = cut(candidates([1.0])[0], 0.25)
    assert Race(1, WEIGHTS).hopeless([units, dict(units), dict(units)], TOTALS) == [False] * 3


def test_what_is_not_a_number_is_not_dropped_but_beats_nobody() -> None:
    good, bad = candidates([1.0, 2.0])
    bad = {digest: np.full_like(values, np.nan) for digest, values in bad.items()}
    race = Race(1, WEIGHTS)
    assert race.hopeless([cut(good, 0.5), cut(bad, 0.5)], TOTALS) == [False, False]


def test_where_none_was_finished_an_estimate_is_what_a_candidate_has_so_far() -> None:
    """All that it was dropped for failed later, or are not numbers: nothing is known but its own units."""
    first, second = candidates([1.0, 2.0], noise=0.0)
    nan = {digest: np.full_like(values, np.nan) for digest, values in first.items()}
    for finished in ([], [nan]):
        estimates = Race(1, WEIGHTS).estimates(finished, {3: cut(first, 0.5), 7: cut(second, 0.5)}, TOTALS)
        assert estimates[7] - estimates[3] == pytest.approx(1.0)
        assert estimates[3] == pytest.approx(sum(2 * values.sum() for values in cut(first, 0.5).values()))


def test_an_estimate_of_everything_is_the_loss() -> None:
    (whole,) = candidates([1.0])
    assert Race(1, WEIGHTS).estimates([], {0: whole}, TOTALS)[0] == pytest.approx(loss_of(whole))


@pytest.mark.parametrize("scored", [1, 2, FEWEST - 1, FEWEST])
def test_few_units_prove_nothing(scored: int) -> None:
    """Right on the first items here and wrong there has no variance, and yet may be chance."""
    totals = {"items": 20}
    right, wrong = ({"items": np.full(scored, value / 20)} for value in (-1.0, 0.0))
    assert Race(1, WEIGHTS).hopeless([right, wrong], totals) == [False, scored == FEWEST]


def test_how_much_candidates_differ_on_a_set_is_seen_from_all_of_them() -> None:
    """Two that are alike on its first unit may yet differ on the others as much as others do."""
    totals = {"text": 100, "items": 9}
    text = {"text": np.linspace(0.0, 0.001, 50)}
    (first, second), apart = ({"items": np.array([0.0])} for _ in "12"), {"items": np.array([5.0])}
    better = {digest: values - 0.01 for digest, values in text.items()}
    race = Race(1, WEIGHTS)
    assert race.hopeless([{**better, **first}, {**text, **second}], totals) == [False, True]
    more = [{**better, **first}, {**text, **second}, {**text, **apart}]
    assert race.hopeless(more, totals) == [False, False, False]


def test_a_set_of_few_units_does_not_keep_others_from_deciding() -> None:
    totals = {"text": 100, "prompts": 4}
    good, bad = ({"text": np.linspace(m, m + 0.1, 50), "prompts": np.array([m])} for m in (1.0, 2.0))
    assert Race(1, WEIGHTS).hopeless([good, bad], totals) == [False, True]


def test_a_single_unit_that_is_all_there_is_is_certain() -> None:
    """As of a model's size: no chance is left in it."""
    small, large = ({"model": np.array([size])} for size in (1.0, 1.1))
    assert Race(1, WEIGHTS).hopeless([small, large], {"model": 1}) == [False, True]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_variance_is_that_of_repeated_draws(share: float) -> None:
    """Over random orders of the tokens, differences scatter around the true one as computed."""
    rng = np.random.RandomState(1)
    first, second = candidates([1.0, 1.3], noise=1.0)
    true = loss_of(first) - loss_of(second)
    errors: list[float] = []
    variances: list[float] = []
    for _ in range(2000):
        orders: dict[str, NDArray[np.int64]] = {d: rng.permutation(n) for d, n in TOTALS.items()}
        drawn = [cut({d: units[d][orders[d]] for d in TOTALS}, share) for units in (first, second)]
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
    whole = candidates([1.0, 1.05, 1.4, 0.2])
    dropped = {2: cut(whole[2], 0.25), 3: cut(whole[3], 0.25)}
    estimates = Race(2, WEIGHTS).estimates(whole[:2], dropped, TOTALS)
    assert estimates[2] == pytest.approx(loss_of(whole[2]), abs=0.05)
    assert estimates[3] == max(loss_of(units) for units in whole[:2])  # clipped: it was ruled out
