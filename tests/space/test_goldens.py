"""Points decode, encode and move as they did when these digests were taken."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pytest

from gptailor_merge.planning.resolve import plan
from gptailor_merge.space.outer import METHODS as OUTER_METHODS
from gptailor_merge.space.outer import Outer
from tests.space.test_space import METHODS, MODELS, PARTS, slot_by_slot, space

SPACES = {
    "plain": space(),
    "sizes": space(kept=(4, 5, 6)),
    "selects": space(methods=()),
    "outer": space(outer=Outer(MODELS, OUTER_METHODS), out_dtype="bfloat16"),
    "tied": space(outer=Outer(MODELS[:2], OUTER_METHODS, tied=True)),
    "neighbours": space(neighbours=2, methods=("linear", "slerp")),
    "parts": space(parts=PARTS, methods=("ties",), outer=Outer(MODELS)),
    "pattern": space(
        removable=tuple(range(1, 8)), layer_kinds=tuple("dsdsdsds"), patterns={5: tuple("dsdsd")}
    ),
    "all": space(
        10, (6, 7, 8), neighbours=1, parts=PARTS, outer=Outer(MODELS, OUTER_METHODS), methods=METHODS
    ),
}
GOLDENS = {
    "plain": ("bd949728ab5bc8ac", "1d4caa0b8df0b8e6", "0ddba5c7cf118458"),
    "sizes": ("918cc33d269ff21f", "cffbd47b32cc1230", "59bf94761c4bf48d"),
    "selects": ("ca14ae70417eb002", "0ac66483a311cbea", "1d9a315457398062"),
    "outer": ("f90ea15154f9d382", "97b4cbb66cd2e66e", "2047ae5e24290a16"),
    "tied": ("9ae95dda94d71038", "50f3128da58c951b", "a760eec0a2c2f1b1"),
    "neighbours": ("6768c295452144e9", "1bab54966406ccc4", "8d96245ef1af57b8"),
    "parts": ("0f354eb620f27167", "25f3aa8e49744895", "62008243d7e0ed71"),
    "pattern": ("57c14ee27a49092b", "dc07df88a9e92299", "4a60d57dcbe0f870"),
    "all": ("c32d2590abb44f9d", "318347b71bf54f91", "7d0f8153194b8043"),
}
"""Digests (of children, too), recipes and encoded points of 150 random points.

Where nothing merges, they are those of version 0.1 (commit 83765a0); elsewhere moves have changed since.
"""


@pytest.mark.parametrize("name", GOLDENS)
def test_random_points_are_the_recipes_that_they_were(name: str) -> None:
    made, rng = SPACES[name], np.random.RandomState(11)
    digests, texts, points = [], [], []
    for number in range(150):
        stretch = (1.0, 1.0, 3.0)[number % 3]
        point = {key: (values - 0.5) * stretch + 0.5 for key, values in made.random(rng).items()}
        decoded = made.decode(point)
        recipe = made.recipe(decoded)
        assert plan(recipe) == decoded
        digests.append(decoded.digest)
        texts.append(slot_by_slot(recipe).to_yaml())
        points.append(repr([(key, values.tolist()) for key, values in made.encode(decoded, rng).items()]))
        child = made.mutate(made.recombine(point, made.random(rng), rng), rng)
        digests.append(made.decode(child).digest)
        if number % 10 == 0:
            removed = set(rng.choice(range(1, 7), 3, replace=False).tolist())
            selected = made.select(number // 10 % 4, removed)
            digests.append(selected.digest)
            texts.append(made.recipe(selected).to_yaml())
    assert (hashed(digests), hashed(texts), hashed(points)) == GOLDENS[name]


def hashed(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()[:16]
