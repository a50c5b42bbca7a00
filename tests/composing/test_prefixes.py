from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import PrefixWalk, common, path_of, trie_order
from gptailor_merge.recipe.family import Family
from gptailor_merge.recipe.operations import plan
from gptailor_merge.scoring.evaluator import forward
from gptailor_merge.search.space import Space

IDS = torch.randint(0, 64, (3, 11), generator=torch.Generator().manual_seed(0))

paths = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8)


@given(paths)
def test_the_order_of_a_trie_keeps_common_prefixes_together(made: list[tuple[int, ...]]) -> None:
    order = trie_order(made)
    assert sorted(order) == list(range(len(made)))
    walked = [made[position] for position in order]
    for depth in range(1, 5):
        prefixes = [path[:depth] for path in walked if len(path) >= depth]
        runs = [p for i, p in enumerate(prefixes) if i == 0 or prefixes[i - 1] != p]
        assert len(runs) == len(set(runs))


def test_common_steps() -> None:
    assert common("abcd", "abxd") == 2
    assert common("ab", "abc") == 2
    assert common("", "abc") == 0


@pytest.fixture
def generation(family: dict[str, str]) -> tuple[Composer, list[Any]]:
    """A composer and 24 plans: children of one parent, merges included."""
    loaded = Family.load(family["base"], {n: family[n] for n in ("math", "code")})
    models = tuple(member.model for member in loaded.members)
    space = Space(models, 5, 3, (1, 2, 3), ("task_arithmetic", "slerp"), "float32", "float32")
    rng = np.random.RandomState(1)
    points = [space.random(rng)]
    points += [space.mutate(points[0], rng) for _ in range(23)]
    composer = Composer(Bank(loaded, Precision.of("float32", "float32")))
    return composer, [plan(space.decode(point)) for point in points]


def test_logits_are_those_of_running_each_model_alone(generation: tuple[Composer, list[Any]]) -> None:
    composer, plans = generation
    made = [path_of(p) for p in plans]
    order = trie_order(made)
    walk = PrefixWalk(lambda model: forward(model, IDS))
    for here, after in zip(order, [*order[1:], None], strict=True):
        model = composer.compose(plans[here])
        keep = 0 if after is None else common(made[here], made[after])
        assert torch.equal(walk.run(model, made[here], keep), forward(model, IDS))
        assert type(model.base_model.layers[0]).__name__ == "LlamaDecoderLayer"
    distinct = {made[i][: depth + 1] for i in order for depth in range(3)}
    assert walk.layers_run == len(distinct) < 3 * len(plans)


def test_a_failing_model_leaves_the_path_sound(generation: tuple[Composer, list[Any]]) -> None:
    composer, plans = generation
    path, model = path_of(plans[0]), composer.compose(plans[0])
    expected = forward(model, IDS)
    fail_once = [True]

    def run(composed: Any) -> torch.Tensor:
        logits = forward(composed, IDS)
        if fail_once:
            fail_once.clear()
            raise RuntimeError("out of memory")
        return logits

    walk = PrefixWalk(run)
    with pytest.raises(RuntimeError):
        walk.run(model, path, keep=3)
    assert torch.equal(walk.run(model, path, keep=2), expected)
    assert torch.equal(walk.run(model, path, keep=0), expected)
    assert walk.layers_run == 3 + 1


def test_other_embeddings_are_another_path(generation: tuple[Composer, list[Any]]) -> None:
    _, plans = generation
    one = plans[0]
    other = type(one)(**{**vars(one), "embeddings": (("elsewhere",), one.embeddings[1])})
    assert common(path_of(one), path_of(other)) == 0
    assert common(path_of(one), path_of(type(one)(**{**vars(one), "head": other.embeddings}))) == 3
