from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.front import check_rule, dominates, front, pick
from gptailor_merge.search.optimizers.nevergrad import rank
from tests.space.test_space import space

AXES = ("kl", "acc", "parameters")
VALUES = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=24)


def candidate(number: int, kept: int, kl: float, acc: float) -> Candidate:
    """Of so many layers, each a parameter."""
    made = space(8, kept)
    recipe = made.recipe(made.select(0, set(range(1, 1 + 8 - kept))))
    scores = {
        "kl": {"t": Score(kl, 10)},
        "acc": {"t": Score(-acc, 10, "negated")},
        "parameters": {"model": Score(float(kept), 1, "count")},
    }
    return Candidate(number, f"{number:016x}", recipe.to_yaml(), "scored", kl, scores, "f")


CANDIDATES = [
    candidate(0, 7, kl=0.1, acc=0.9),
    candidate(1, 7, kl=0.2, acc=0.8),  # worse than the first in both
    candidate(2, 5, kl=0.3, acc=0.85),
    candidate(3, 5, kl=0.25, acc=0.6),
    candidate(4, 3, kl=2.0, acc=0.3),
    candidate(5, 3, kl=2.0, acc=0.3),  # no better than the one before
]


def test_the_front_is_what_nothing_dominates_from_small_to_large() -> None:
    found = front(CANDIDATES, AXES)
    assert [point.candidate.number for point in found] == [4, 3, 2, 0]
    assert [point.layers for point in found] == [3, 5, 5, 7]
    assert found[0].name == "03-layers-00000000"
    assert [point.candidate.number for point in front(CANDIDATES, ("kl",))] == [0]


@given(VALUES)
def test_every_other_candidate_is_dominated_by_one_of_the_front(values: list[tuple[int, int, int]]) -> None:
    some = [
        Candidate(n, f"{n:016x}", CANDIDATES[0].recipe, "scored", 0.0, scores_of(v), "f")
        for n, v in enumerate(values)
    ]
    found = {point.losses for point in front(some, AXES)}
    for losses in {tuple(map(float, v)) for v in values} - found:
        assert any(dominates(better, losses) for better in found)
    assert not any(dominates(one, other) for one in found for other in found)


def scores_of(values: tuple[int, int, int]) -> dict[str, dict[str, Score]]:
    return {name: {"t": Score(float(value), 1)} for name, value in zip(AXES, values, strict=True)}


def test_picking_by_rule() -> None:
    found = front(CANDIDATES, AXES)
    assert pick(found, "best:acc", AXES).candidate.number == 0
    assert pick(found, "best:parameters", AXES).candidate.number == 4
    assert pick(found, "layers=7", AXES).candidate.number == 0
    # Of the two with five layers, scaled to [0, 1]: (1, 0) and (0, 1); the first of equal ones.
    assert pick(found, "layers=5", AXES).candidate.number == 3
    # Scaled sums: 3 layers 2.0, 5 layers 1.08 and 0.69, 7 layers 1.0.
    assert pick(found, "knee", AXES).candidate.number == 2


@pytest.mark.parametrize(
    ("rule", "axes", "message"),
    [
        ("best:kl2", AXES, "search.pick: no such objective; known are kl, acc, parameters, found 'best:kl2'"),
        ("layers=4", AXES, "search.pick: no such size; searched are 3, 5, 7 layers, found 'layers=4'"),
        ("layers=5", (), "search.pick: one recipe is sought, and there is no front to pick from"),
        ("layers", AXES, "search.pick: expected knee, best:OBJECTIVE or layers=N, found 'layers'"),
    ],
)
def test_rules_that_no_front_can_answer(rule: str, axes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_rule(rule, axes, (3, 5, 7))
    assert message in str(caught.value)


@given(VALUES, st.integers(1, 24))
def test_selection_takes_whole_fronts_first(values: list[tuple[int, int, int]], size: int) -> None:
    """nevergrad's own ranking counts wins, so that 1, 1, 9 would beat 2, 2, 0."""
    population = [
        SimpleNamespace(uid=str(n), losses=np.array(v, dtype=float), _meta={}) for n, v in enumerate(values)
    ]
    chosen = rank(population, size)
    assert len(chosen) == min(size, len(values))
    by_uid = {one.uid: tuple(one.losses) for one in population}
    left = [losses for uid, losses in by_uid.items() if uid not in chosen]
    for uid in chosen:
        assert not any(dominates(other, by_uid[uid]) for other in left)
