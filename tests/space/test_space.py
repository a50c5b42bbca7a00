from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.errors import ConfigError
from gptailor_merge.methods.specs import method_names
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.recipe.plan import SELECT, Plan
from gptailor_merge.recipe.recipe import Recipe, Slice
from gptailor_merge.space.outer import METHODS as OUTER_METHODS
from gptailor_merge.space.outer import Outer
from gptailor_merge.space.points import Point
from gptailor_merge.space.sizes import removable_layers, target_sizes
from gptailor_merge.space.slots import is_parts
from gptailor_merge.space.space import Space

MODELS = ("org/base", "org/a", "org/b", "org/c")
METHODS = ("task_arithmetic", "slerp", "linear", "ties", "model_stock", "nearswap", "multislerp", "nuslerp")

PARTS = ("mlp.", "post_attention_layernorm.")
WALKS: dict[object, str] = {5: "68862f71241d2622", (4, 5, 6): "e5895bcb7ec31d66"}
OUTERS = (
    None,
    Outer(MODELS),
    Outer(MODELS, OUTER_METHODS),
    Outer(MODELS[:2], OUTER_METHODS, tied=True),
    Outer(MODELS, tied=True),
)


def space(depth: int = 8, kept: int | tuple[int, ...] = 5, **options: object) -> Space:
    sizes = kept if isinstance(kept, tuple) else (kept,)
    defaults = {"removable": tuple(range(1, depth - 1)), "methods": METHODS, "dtype": "float32"}
    return Space(models=MODELS, depth=depth, sizes=sizes, **{**defaults, **options})  # type: ignore[arg-type]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    depth = draw(st.integers(3, 10))
    removable = draw(st.sets(st.integers(0, depth - 1), min_size=1))
    possible = st.integers(max(1, depth - len(removable)), depth - 1)
    smallest, largest = sorted((draw(possible), draw(possible)))
    methods = draw(st.lists(st.sampled_from(METHODS), unique=True, max_size=4))
    sizes = tuple(range(smallest, largest + 1))
    return space(
        depth,
        sizes,
        removable=tuple(sorted(removable)),
        methods=tuple(methods),
        outer=draw(st.sampled_from(OUTERS)),
        neighbours=draw(st.sampled_from([0, 0, 1, 2])),
        parts=draw(st.sampled_from([(), PARTS])),
        layer_kinds=draw(st.sampled_from([(), tuple("ab" * depth)[:depth]])),
    )


@st.composite
def points(draw: st.DrawFn) -> tuple[Space, Point, np.random.RandomState]:
    """A space, a point of it, at times on the edges or outside of [0, 1], and a random state."""
    made = draw(spaces())
    rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    stretch = draw(st.sampled_from([1.0, 1.0, 3.0]))
    point = {name: (v - 0.5) * stretch + 0.5 for name, v in made.random(rng).items()}
    if draw(st.booleans()):
        point = {name: np.round(v) for name, v in point.items()}
    return made, point, rng


def layers(made: Space, point: Point) -> list[int]:
    return [slot.layers[0][1] for slot in made.decode(point).slots]


def assert_valid(made: Space, point: Point) -> None:
    resolved = made.decode(point)
    recipe = made.recipe(resolved)
    assert problems(recipe) == []
    assert plan(recipe) == resolved
    assert plan(recipe).digest == resolved.digest
    own = made.kept_layers(point)
    assert len(resolved.slots) == len(own) == made.size(point)
    assert made.size(point) in made.sizes
    assert own == sorted(set(own))
    for layer, slot in zip(own, resolved.slots, strict=True):
        assert {taken for _, taken in slot.layers} <= set(made.layers_for(layer))
    used = {taken for slot in resolved.slots for _, taken in slot.layers}
    assert set(range(made.depth)) - used <= set(made.removable)
    removed = [s.sources[0].layer_range for s in recipe.slices if s.parameter("op") == "remove"]
    assert {layer for first, last in removed for layer in range(first, last)} == set(range(made.depth)) - used
    assert made.neighbours or used == set(own)
    if made.outer is None or made.outer.tied:
        assert resolved.embeddings == resolved.head


@given(points())
def test_every_point_is_a_valid_recipe_of_the_right_size(
    case: tuple[Space, Point, np.random.RandomState],
) -> None:
    made, point, _ = case
    assert_valid(made, point)


@given(points())
def test_encoding_keeps_the_recipe(case: tuple[Space, Point, np.random.RandomState]) -> None:
    made, point, rng = case
    recipe = made.decode(point)
    assert made.decode(made.encode(recipe)) == recipe
    assert made.decode(made.encode(recipe, rng)) == recipe


@given(points())
def test_mutation_keeps_to_the_sizes(case: tuple[Space, Point, np.random.RandomState]) -> None:
    made, point, rng = case
    for _ in range(5):
        point = made.mutate(point, rng)
        assert_valid(made, point)


def test_a_step_of_size_brings_back_the_layer_that_went_last() -> None:
    """The removal keys order the layers, whatever the size."""
    made, rng = space(kept=(4, 5, 6)), np.random.RandomState(0)
    point = made.random(rng)
    kept = {size: set(made.keep(point["removal"].tolist(), size)) for size in made.sizes}
    assert kept[4] < kept[5] < kept[6]
    sizes = set()
    for _ in range(100):
        point = made.mutate(point, rng)
        sizes.add(made.size(point))
    assert sizes == {4, 5, 6}


@given(points())
def test_recombination_keeps_the_size_and_takes_from_both(
    case: tuple[Space, Point, np.random.RandomState],
) -> None:
    made, point, rng = case
    other = made.random(rng)
    child = made.recombine(point, other, rng)
    assert_valid(made, child)
    for layer in range(made.depth):
        assert child["kind"][layer] in (point["kind"][layer], other["kind"][layer])


def test_mutation_reaches_every_kind_and_every_removal() -> None:
    made, rng = space(), np.random.RandomState(0)
    point = made.random(rng)
    seen_kinds, seen_removed = set(), set()
    for _ in range(600):
        point = made.mutate(point, rng)
        kept = made.kept_layers(point)
        seen_removed |= set(range(made.depth)) - set(kept)
        seen_kinds |= {slot.operation.method for slot in made.decode(point).slots}
    assert seen_removed == set(made.removable)
    assert seen_kinds == {SELECT, *METHODS}


@pytest.mark.parametrize("kept", [5, (4, 5, 6)])
def test_what_is_off_draws_no_random_numbers(kept: int | tuple[int, ...]) -> None:
    """The recipes of a walk, as they were before there was anything to switch on."""
    made, rng = space(kept=kept), np.random.RandomState(5)
    point = made.encode(made.decode(made.random(rng)), rng)
    walk = hashlib.sha256()
    for _ in range(40):
        point = made.mutate(made.recombine(point, made.random(rng), rng), rng)
        walk.update(slot_by_slot(made.recipe(made.decode(point))).to_yaml().encode())
    assert walk.hexdigest()[:16] == WALKS[kept]


def slot_by_slot(recipe: Recipe) -> Recipe:
    """A recipe with a slice for each merged slot, as recipes of searches were written at that time."""
    slices: list[Slice] = []
    for part in recipe.slices:
        is_merge = part.parameter("op") == "merge"
        for offset in range(part.sources[0].length) if is_merge else ():
            firsts = [source.layer_range[0] + offset for source in part.sources]
            sources = [
                source.model_copy(update={"layer_range": (first, first + 1)})
                for source, first in zip(part.sources, firsts, strict=True)
            ]
            slices.append(part.model_copy(update={"sources": tuple(sources)}))
        slices += [] if is_merge else [part]
    return recipe.model_copy(update={"slices": tuple(slices)})


def test_mutation_reaches_all_that_is_switched_on() -> None:
    """Every member of embeddings and of head, merges of both, both neighbours, every pair of parts."""
    made = space(methods=("linear",), outer=Outer(MODELS, OUTER_METHODS), neighbours=1, parts=PARTS)
    rng = np.random.RandomState(0)
    point = made.random(rng)
    components: tuple[set[object], set[object]] = (set(), set())
    steps, pairs = set(), set()
    for _ in range(1500):
        point = made.mutate(point, rng)
        resolved = made.decode(point)
        for seen, (models, operation) in zip(components, (resolved.embeddings, resolved.head), strict=True):
            seen.add(models[0] if operation.method == SELECT else operation.method)
        for layer, slot in zip(made.kept_layers(point), resolved.slots, strict=True):
            steps |= {(model, taken - layer) for model, taken in slot.layers}
            if is_parts(slot.operation):
                pairs.add(tuple(model for model, _ in slot.layers))
    assert components == ({*MODELS, *OUTER_METHODS},) * 2
    assert steps == {(model, step) for model in MODELS for step in (-1, 0, 1)}
    assert pairs == {(one, other) for one in MODELS for other in MODELS if one != other}


def test_recombination_takes_components_from_both() -> None:
    made, rng = space(outer=Outer(MODELS)), np.random.RandomState(0)
    first = made.encode(whole(made, "org/a", "org/a"))
    second = made.encode(whole(made, "org/b", "org/b"))
    children = [made.decode(made.recombine(first, second, rng)) for _ in range(50)]
    pairs = {(*child.embeddings[0], *child.head[0]) for child in children}
    assert pairs == {(one, other) for one in ("org/a", "org/b") for other in ("org/a", "org/b")}


def whole(made: Space, embeddings: str, head: str) -> Plan:
    """The base without layers 1, 2 and 3 between these embeddings and this head."""
    document = made.recipe(made.select(0, {1, 2, 3})).to_mapping()
    return plan(Recipe.from_mapping({**document, "parameters": {"embeddings": embeddings, "head": head}}))


def test_a_pruned_member_has_its_own_embeddings_and_head_where_they_fit() -> None:
    made = space(outer=Outer(MODELS[:2]))
    for member, outer in ((0, 0), (1, 1), (2, 0)):
        resolved = made.select(member, {2, 3, 4})
        assert {model for slot in resolved.slots for model, _ in slot.layers} == {MODELS[member]}
        assert resolved.embeddings[0] == resolved.head[0] == (MODELS[outer],)
    assert space().select(1, {2, 3, 4}).embeddings[0] == (MODELS[0],)


def test_one_component_where_the_head_is_the_embedding_matrix() -> None:
    made = space(outer=Outer(MODELS, tied=True))
    assert made.decode(made.encode(whole(made, "org/a", "org/a"))) == whole(made, "org/a", "org/a")
    with pytest.raises(ConfigError, match="that this space does not have"):
        made.encode(whole(made, "org/a", "org/b"))
    with pytest.raises(ConfigError, match="embeddings: its model or method is not in this space"):
        space(outer=Outer(MODELS[:2])).encode(whole(made, "org/b", "org/b"))


def stack(made: Space, *taken: int) -> Plan:
    """These layers of the base, one after the other."""
    slices = [
        {"sources": [{"model": MODELS[0], "layer_range": [i, i + 1]}], "parameters": {"op": "select"}}
        for i in taken
    ]
    document = {"merge_method": "tailor", "base_model": MODELS[0], "dtype": "float32", "slices": slices}
    return plan(Recipe.from_mapping(document))


@pytest.mark.parametrize(
    ("taken", "own"),
    [
        ((0, 1, 2, 6, 7), [0, 1, 2, 6, 7]),
        ((0, 2, 2, 6, 7), [0, 1, 2, 6, 7]),  # layer 2 twice
        ((0, 3, 2, 6, 7), [0, 2, 3, 6, 7]),  # 2 and 3 change places
        ((0, 3, 3, 3, 7), [0, 2, 3, 4, 7]),  # layer 3 three times
    ],
)
def test_a_neighbour_is_encoded_as_the_nearest_slot(taken: tuple[int, ...], own: list[int]) -> None:
    made = space(neighbours=1)
    point = made.encode(stack(made, *taken))
    assert made.kept_layers(point) == own
    assert layers(made, point) == list(taken)
    removed = [
        s.sources[0].layer_range
        for s in made.recipe(made.decode(point)).slices
        if s.parameter("op") == "remove"
    ]
    assert {i for first, last in removed for i in range(first, last)} == set(range(8)) - set(taken)


@pytest.mark.parametrize(
    "taken",
    [
        (1, 2, 3, 6, 7),  # the first layer is protected
        (0, 5, 2, 6, 7),  # too far
    ],
)
def test_a_neighbour_too_far_is_refused(taken: tuple[int, ...]) -> None:
    made = space(neighbours=1)
    with pytest.raises(ConfigError, match="that this space does not have"):
        made.encode(stack(made, *taken))


def test_a_family_of_one_has_no_parts_to_mix() -> None:
    with pytest.raises(ConfigError, match=r"operations\.parts: a family of one model has no parts to mix"):
        Space(models=MODELS[:1], depth=8, sizes=(5,), removable=(1, 2, 3), methods=(), parts=PARTS)


def test_weights_that_differ_by_tensor_are_not_in_a_space_without_parts() -> None:
    made = space(parts=PARTS)
    point = made.random(np.random.RandomState(0))
    point["kind"][:], point["part"][:] = 1.0, [0.1, 0.9]
    assert {is_parts(slot.operation) for slot in made.decode(point).slots} == {True}
    for nearest in (False, True):
        with pytest.raises(ConfigError, match="weights differ by tensor"):
            space().encode(made.decode(point), nearest=nearest)


def test_a_recipe_from_elsewhere_is_refused() -> None:
    recipe = space(kept=4).decode(space().random(np.random.RandomState(0)))
    with pytest.raises(ConfigError, match="is not in a space of 5 layers"):
        space().encode(recipe)
    with pytest.raises(ConfigError, match="is not in a space of 5 or 6 layers"):
        space(kept=(5, 6)).encode(recipe)
    merged = space(methods=("ties",)).decode({**space().random(np.random.RandomState(0)), "kind": np.ones(8)})
    with pytest.raises(ConfigError, match="its model or method is not in this space"):
        space(methods=("slerp",)).encode(merged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": 9}, "target: expected 1 to 8 layers to keep of 8, found 9"),
        ({"kept": 0}, "target: expected 1 to 8 layers to keep of 8, found 0"),
        ({"kept": 1}, "target: 7 layers would have to go, and only 6 may"),
        ({"removable": (3, 4, 9)}, "operations.removable: layer out of range, found 9 of 8 layers"),
        ({"methods": ("slrep",)}, "operations.merge[0]: unknown method, found 'slrep'; known are"),
        ({"methods": ("passthrough",)}, "operations.merge[0]: unknown method, found 'passthrough'"),
    ],
)
def test_impossible_spaces_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_family_too_small_for_a_merge_is_told() -> None:
    with pytest.raises(ConfigError, match="model_stock merges 3 models or more, the family has 2"):
        Space(models=MODELS[:2], depth=8, sizes=(5,), removable=(1, 2, 3), methods=("model_stock",))


def test_every_method_of_mergekit_can_be_searched() -> None:
    names = tuple(name for name in method_names() if name != SELECT)
    made, rng = space(methods=names), np.random.RandomState(0)
    for index in range(len(names)):
        point = made.random(rng)
        point["kind"][:] = (len(MODELS) + index + 0.5) / made.kinds
        assert_valid(made, point)
        assert {slot.operation.method for slot in made.decode(point).slots} == {names[index]}


@pytest.mark.parametrize(
    ("target", "sizes"),
    [
        ({"layers": 9}, (9,)),
        ({"remove": 3}, (9,)),
        ({"parameters": 0.75}, (8,)),
        ({"parameters": 0.999}, (11,)),
        ({"layers": (6, 9), "remove": None}, (6, 7, 8, 9)),
        ({"remove": (3, 5)}, (7, 8, 9)),
        ({"parameters": (0.5, 0.75)}, (5, 6, 7, 8)),
    ],
)
def test_targets(target: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert target_sizes(target, outer=100, layers=[100] * 12) == sizes


def test_the_first_and_last_layers_are_protected() -> None:
    assert removable_layers(6, 1, 2, None) == (1, 2, 3)
    assert removable_layers(6, 1, 1, [4, 0]) == (0, 4)


@given(seed=st.integers(0, 2**32 - 1), draw=st.data())
def test_only_layers_that_keep_a_fixed_pattern_are_offered(seed: int, draw: st.DataObject) -> None:
    """Dense and sparse layers in turn, by the layer's index."""
    depth, kept = 8, draw.draw(st.integers(2, 7))
    kinds = "dsdsdsds"
    rng = np.random.RandomState(seed)
    made = space(
        depth,
        kept,
        removable=tuple(range(1, depth)),
        layer_kinds=tuple(kinds),
        patterns={kept: tuple(kinds[:kept])},
    )
    point = made.random(rng)
    for _ in range(4):
        assert_valid(made, point)
        assert [kinds[layer] for layer in layers(made, point)] == list(kinds[:kept])
        recipe = made.decode(point)
        assert made.decode(made.encode(recipe)) == recipe
        point = made.mutate(point, rng)


def test_a_size_that_no_pattern_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="no 3 layers keep the pattern of layers that this architecture"):
        space(5, 3, removable=(1, 2), layer_kinds=tuple("aabaa"), patterns={3: tuple("aba")})


def test_the_nearest_point_rounds_weights_and_nothing_else() -> None:
    made = space(5, 3)
    point = made.random(np.random.RandomState(3))
    point["kind"][:] = (len(MODELS) + 0.5) / made.kinds  # task_arithmetic
    decoded = made.decode(point)
    document = made.recipe(decoded).to_mapping()
    (source,) = [s for s in document["slices"][0]["sources"] if "parameters" in s][:1]
    source["parameters"]["weight"] += 0.001
    near = plan(Recipe.from_mapping(document))
    with pytest.raises(ConfigError, match="that this space does not have"):
        made.encode(near)
    assert made.decode(made.encode(near, nearest=True)) == decoded
    document["slices"][0]["parameters"]["lambda"] = 0.5
    with pytest.raises(ConfigError, match="that this space does not have"):
        made.encode(plan(Recipe.from_mapping(document)), nearest=True)
