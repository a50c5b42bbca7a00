"""LaCo's merges and its passes. The recipes are built and not resolved: that is the recipe's business."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gptailor_merge.errors import ConfigError, SearchError
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.search.baselines.laco import LaCo, LayerSum, collapse, plan_of
from gptailor_merge.search.baselines.subject import base_of
from gptailor_merge.space.space import Space
from tests.search.baselines.test_methods import Rule, problem, space_of

THETA = np.random.RandomState(0).normal(size=(12, 3))
"""The layers of a model, three numbers each."""


def made(slots: list[LayerSum]) -> list[Any]:
    return [sum(coefficient * THETA[layer] for layer, coefficient in slot.items()) for slot in slots]


def dense(depth: int) -> list[LayerSum]:
    return [{layer: 1.0} for layer in range(depth)]


def test_a_merge_is_that_of_the_paper() -> None:
    """θ*_l = θ_l + Σ_k (θ_{l+k} − θ_l)."""
    expected = THETA[2] + (THETA[3] - THETA[2]) + (THETA[4] - THETA[2]) + (THETA[5] - THETA[2])
    slots = collapse(dense(8), 2, 3)
    assert [next(iter(slot)) for slot in slots] == [0, 1, 2, 6, 7]
    np.testing.assert_allclose(made(slots)[2], expected)
    # Merged layers are merged again: θ of a slot is what it has become.
    again = collapse(slots, 1, 2)
    np.testing.assert_allclose(made(again)[1], THETA[1] + (expected - THETA[1]) + (THETA[6] - THETA[1]))
    assert all(sum(slot.values()) == pytest.approx(1.0) for slot in again)


def test_a_slot_is_task_arithmetic_with_a_marked_base() -> None:
    slots = collapse(collapse(dense(8), 3, 2), 2, 1)
    document = recipe_of(plan_of(base_of(space_of(5)), slots), 8).to_mapping()
    assert [
        ([tuple(s["layer_range"]) for s in part["sources"]], part["parameters"]["op"])
        for part in document["slices"]
    ] == [([(0, 2)], "select"), ([(2, 3), (3, 4), (4, 5), (5, 6)], "merge"), ([(6, 8)], "select")]
    (merge,) = [part for part in document["slices"] if part["parameters"]["op"] == "merge"]
    assert merge["parameters"]["method"] == "task_arithmetic"
    base, *others = merge["sources"]
    assert base["parameters"] == {"base": True}
    theta = THETA[2] + sum(
        source["parameters"]["weight"] * (THETA[source["layer_range"][0]] - THETA[2]) for source in others
    )
    np.testing.assert_allclose(theta, made(slots)[2])


def collapsed(space: Space, size: int, similarity: Any, **settings: Any) -> list[LayerSum]:
    return LaCo(**settings)._collapsed(space, size, similarity)


def test_it_goes_down_from_the_last_layers_and_merges_what_stays_similar() -> None:
    """The paper's algorithm, with the size as its end."""
    seen: list[list[int]] = []

    def similarity(slots: list[LayerSum]) -> float:
        bases = [next(iter(slot)) for slot in slots]
        seen.append(bases)
        return 0.0 if bases == [0, 1, 2, 3, 4, 7, 11] else 0.97

    space = Space(("org/base",), 12, (7,), tuple(range(1, 11)), ())
    slots = collapsed(space, 7, similarity, merged=(4,))
    # 8, 9 and 10 go into 7. Two further down there is no room for four; so it is 5 and 6 into 4, no more
    # than are left to go. That is too much; one further down is not.
    assert seen[:3] == [[0, 1, 2, 3, 4, 5, 6, 7, 11], [0, 1, 2, 3, 4, 7, 11], [0, 1, 2, 3, 6, 7, 11]]
    assert [next(iter(slot)) for slot in slots] == seen[-1]


@pytest.mark.parametrize("size", range(3, 12))
def test_every_size_is_reached_and_protected_layers_are_untouched(size: int) -> None:
    rng = np.random.RandomState(size)
    space = Space(("org/base",), 12, (size,), tuple(range(1, 11)), ())
    slots = collapsed(space, size, lambda _: float(rng.uniform(-1, 1)))
    assert len(slots) == size
    assert slots[0] == {0: 1.0}
    assert slots[-1] == {11: 1.0}
    assert sorted(layer for slot in slots for layer in slot) == list(range(12))


@pytest.mark.parametrize("size", [3, 4])
def test_where_one_pass_has_no_room_it_begins_again(size: int) -> None:
    space = Space(("org/base",), 8, (size,), tuple(range(1, 7)), ())
    slots = collapsed(space, size, lambda _: 1.0, merged=(4,))
    assert [next(iter(slot)) for slot in slots] == {3: [0, 1, 7], 4: [0, 1, 3, 7]}[size]


def test_the_highest_threshold_that_reaches_the_size_is_taken() -> None:
    """One merge is as similar as it must be only from 0.6 on; another, further down, from 0.8 on."""

    def similarity(slots: list[LayerSum]) -> float:
        (base,) = [next(iter(slot)) for slot in slots if len(slot) > 1]
        return {4: 0.62, 3: 0.5, 2: 0.82, 1: 0.3}[base]

    space = Space(("org/base",), 8, (6,), tuple(range(1, 7)), ())
    slots = collapsed(space, 6, similarity, merged=(3,))
    assert [next(iter(slot)) for slot in slots if len(slot) > 1] == [2]


def test_as_many_layers_are_merged_at_once_as_leave_the_model_most_similar() -> None:
    space = Space(("org/base",), 12, (8,), tuple(range(1, 11)), ())
    for most in (3, 2):
        slots = collapsed(
            space, 8, lambda slots, n=most: -float(abs(max(map(len, slots)) - n)), merged=(4, 3, 2)
        )
        assert max(map(len, slots)) == most


def test_kinds_and_patterns_are_kept() -> None:
    kinds = "ddddssss"
    space = Space(("org/base",), 8, (6,), tuple(range(1, 7)), (), layer_kinds=tuple(kinds))
    slots = collapsed(space, 6, lambda _: 1.0)
    for slot in slots:
        assert len({kinds[layer] for layer in slot}) == 1


def test_what_it_cannot_do_is_told() -> None:
    space = Space(("org/base",), 5, (2,), (1, 2, 3), ())
    with pytest.raises(SearchError, match="laco cannot collapse 5 layers to 2: it merges neighbours"):
        collapsed(space, 2, lambda _: 1.0)
    given = base_of(space_of(5))
    merge = replace(given, name="ties", sources=("org/base", "org/a"))
    with pytest.raises(ConfigError, match="laco prunes one model, and ties is a merge of several"):
        LaCo().find(problem(Rule(space_of(5)), object(), model=merge))
