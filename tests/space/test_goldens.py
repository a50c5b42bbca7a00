"""Points decode, encode and move as they did in the version before plans took the place of recipes."""

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
    "plain": ("a6eb7a68ce507fa9", "62ef43d61d721c1a", "418e6b32348fdca5"),
    "sizes": ("c97d89df1e001f88", "ceec0905d0fdd1b0", "ca4a2eb6f55e3bea"),
    "selects": ("ca14ae70417eb002", "0ac66483a311cbea", "1d9a315457398062"),
    "outer": ("be9f4e87a3dc2da6", "cba600add25a479c", "25a8889f1212303d"),
    "tied": ("c6dc4e686e1213f3", "7b7eb07430d11778", "d0d3a7b18fec111c"),
    "neighbours": ("7df6fa8c74a7b4df", "f685e9e6384c854f", "411cd64dcc216cab"),
    "parts": ("05d80e99e260bce6", "1f4ae8ae7ca25aed", "fe07862dc010dd67"),
    "pattern": ("2c5e7157e078facd", "05277c11796824cf", "8b3c09370dab9eb5"),
    "all": ("2019af5b6bceb74a", "1454ee47de16bcb3", "f30ad3d56a134968"),
}
"""Digests, recipes and encoded points of 150 random points, by version 0.1 (commit 83765a0)."""


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
