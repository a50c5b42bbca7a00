"""A plan that is written down as a recipe resolves to the same plan."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.errors import RecipeError
from gptailor_merge.methods.specs import method_names, method_spec
from gptailor_merge.planning.resolve import plan, problems
from gptailor_merge.planning.writing import recipe_of, with_removals
from gptailor_merge.recipe.plan import SELECT, Plan
from gptailor_merge.recipe.recipe import Recipe, Slice, Source

DEPTH = 8
MODELS = ("org/base", "org/a", "org/b", "org/c")
FILTERED = [{"filter": "mlp", "value": 0.2}, {"filter": "self_attn", "value": 0.7}, {"value": 0.5}]

Draw = st.DrawFn
numbers = st.sampled_from([0.1, 0.25, 0.5, 0.9])
values = st.one_of(numbers, st.sampled_from([[0.1, 0.9], FILTERED]))


def takes(method: str, count: int) -> bool:
    """Tells whether a method merges this many models, the base included."""
    spec = method_spec(method)
    assert spec is not None
    return max(2, spec.fewest) <= count <= (spec.most or 9)


gains = st.sampled_from([{}, {"gains": "g.safetensors", "gains_digest": "1" * 16}])


@st.composite
def merges(draw: Draw) -> dict[str, Any]:
    """A slice that merges layers of several models, or several layers of one."""
    method = draw(st.sampled_from([n for n in method_names() if n != SELECT]))
    spec = method_spec(method)
    assert spec is not None
    required = {p.name for p in spec.parameters if p.required}
    count = draw(st.integers(2, 4).filter(lambda n: takes(method, n) and (n == 3 or method != "nuslerp")))
    length = draw(st.integers(1, 2))
    firsts = st.integers(0, DEPTH - length)
    places = draw(
        st.lists(st.tuples(st.sampled_from(MODELS), firsts), min_size=count, max_size=count, unique=True)
    )
    sources: list[dict[str, Any]] = [
        {"model": model, "layer_range": [first, first + length]} for model, first in places
    ]
    part: dict[str, Any] = {"sources": sources, "parameters": {"op": "merge", "method": method}}
    takes_base = spec.takes_base
    if takes_base:
        base = draw(st.integers(0, count - 1))
        sources[base]["parameters"] = {"base": True}
    if "weight" in required:
        for source in sources:
            source.setdefault("parameters", {})["weight"] = draw(values)
    if "t" in required:
        part["parameters"]["t"] = draw(values)
    if any(p.name == "density" for p in spec.parameters) and draw(st.booleans()):
        part["parameters"]["density"] = draw(values)
    if draw(st.booleans()):
        part["parameters"]["without"] = draw(st.sampled_from(["attention", "mlp"]))
    part["parameters"] |= draw(gains)
    return part


@st.composite
def selects(draw: Draw) -> dict[str, Any]:
    """A slice that selects layers, at times scaled, with an edit or with a map."""
    first = draw(st.integers(0, DEPTH - 2))
    parameters: dict[str, Any] = {"op": "select"}
    length = draw(st.integers(1, 2))
    if draw(st.booleans()):
        parameters["scale"] = draw(values)
    if draw(st.booleans()):
        parameters["without"] = draw(st.sampled_from(["attention", "mlp"]))
    elif draw(st.booleans()):
        length = 1
        parameters |= {"repair": "m.safetensors", "repair_digest": "0" * 16}
    parameters |= draw(gains)
    model = draw(st.sampled_from(MODELS))
    return {
        "sources": [{"model": model, "layer_range": [first, first + length]}],
        "parameters": parameters,
    }


@st.composite
def components(draw: Draw) -> Any:
    """Embeddings or a head: a member, a merge with weights, or a merge without."""
    kind = draw(st.sampled_from(["member", "weights", "members", "filtered"]))
    members = draw(st.lists(st.sampled_from(["base", *MODELS[1:]]), min_size=3, max_size=4, unique=True))
    if kind == "member":
        return members[0]
    weighted = ["linear", "task_arithmetic", "ties", "multislerp"]
    if kind == "weights":
        made = {"method": draw(st.sampled_from(weighted)), "weights": {m: draw(numbers) for m in members}}
    elif kind == "members":
        made = {"method": draw(st.sampled_from(["model_stock", "karcher", "sce"])), "members": members}
    else:
        made = {
            "method": draw(st.sampled_from(weighted)),
            "members": members,
            "parameters": {"weight": FILTERED},
        }
    if made["method"] not in ("linear", "karcher") and draw(st.booleans()):
        made["base_model"] = members[draw(st.integers(0, len(members) - 1))]
    if made["method"] == "ties" and draw(st.booleans()):
        made["parameters"] = {**made.get("parameters", {}), "density": draw(values), "normalize": False}
    return made


@st.composite
def recipes(draw: Draw) -> Recipe:
    document = {
        "merge_method": "tailor",
        "base_model": MODELS[0],
        "dtype": draw(st.sampled_from([None, "float32"])),
        "out_dtype": draw(st.sampled_from([None, "bfloat16"])),
        "parameters": {
            "embeddings": draw(components()),
            "head": draw(components()),
            "tokenizer": draw(st.sampled_from(["base", "org/a"])),
            **draw(gains),
        },
        "slices": draw(st.lists(st.one_of(merges(), selects()), min_size=1, max_size=4)),
    }
    return Recipe.from_mapping(document)


@given(recipes())
def test_a_written_plan_resolves_to_the_same_plan(recipe: Recipe) -> None:
    assert problems(recipe) == []
    before = plan(recipe)
    written = recipe_of(before, DEPTH)
    after = plan(written)
    assert after.digest == before.digest
    assert after == before
    assert files(after) == files(before)
    assert Recipe.from_mapping(written.to_mapping()) == written
    assert recipe_of(after, DEPTH) == written


def files(made: Plan) -> list[str]:
    edits = [edit for slot in made.slots for edit in slot.edits]
    return [edit.file for edit in (*edits, *made.outer_edits)]


@given(recipes())
def test_every_layer_is_used_or_documented_as_removed(recipe: Recipe) -> None:
    written = recipe_of(plan(recipe), DEPTH)
    removed = [part for part in written.slices if part.parameter("op") == "remove"]
    kept = [part for part in written.slices if part.parameter("op") != "remove"]
    gone, used = (
        {layer for part in parts for source in part.sources for layer in range(*source.layer_range)}
        for parts in (removed, kept)
    )
    assert gone | used == set(range(DEPTH))
    assert not gone & used
    assert {source.model for part in removed for source in part.sources} <= {MODELS[0]}


@pytest.mark.parametrize(
    ("ranges", "places"),
    [
        ([(0, 2), (4, 8)], [("select", 0), ("remove", 2), ("select", 4)]),
        ([(2, 4), (6, 7)], [("remove", 0), ("select", 2), ("remove", 4), ("select", 6), ("remove", 7)]),
        ([(4, 8), (0, 2)], [("remove", 2), ("select", 4), ("select", 0)]),
    ],
)
def test_removals_stand_where_the_layers_would(
    ranges: list[tuple[int, int]], places: list[tuple[str, int]]
) -> None:
    slices = [
        Slice(sources=(Source(model="org/a", layer_range=r),), parameters=(("op", "select"),)) for r in ranges
    ]
    whole = with_removals(slices, "org/base", DEPTH)
    assert [(part.parameter("op"), part.sources[0].layer_range[0]) for part in whole] == places


@pytest.mark.parametrize(
    "settings",
    [
        [{"density": 0.3, "weight": 1.0}, {"density": 0.6, "weight": 0.5}],
        [{"density": 0.3, "weight": 1.0}, {"weight": 0.5}],
        [{"weight": FILTERED}, {"weight": 0.5, "density": 0.2}],
        [{"weight": 0.5, "density": 0.2}, {"weight": 0.1, "density": 0.2}],
        [{"weight": FILTERED}, {"weight": FILTERED}],
    ],
)
@pytest.mark.parametrize("base", [[], ["base"]])
def test_members_of_embeddings_have_parameters_of_their_own(
    settings: list[dict[str, Any]], base: list[str]
) -> None:
    members = [*base, *({"model": m, "parameters": s} for m, s in zip(MODELS[1:3], settings, strict=True))]
    recipe = Recipe.from_mapping(
        {
            "merge_method": "tailor",
            "base_model": MODELS[0],
            "parameters": {
                "embeddings": {"method": "ties", "members": members, "parameters": {"lambda": 0.9}}
            },
            "slices": [
                {"sources": [{"model": MODELS[0], "layer_range": [0, DEPTH]}], "parameters": {"op": "select"}}
            ],
        }
    )
    assert problems(recipe) == []
    models, operation = plan(recipe).embeddings
    inputs = {model: dict(of_model) for model, of_model in zip(models, operation.inputs, strict=True)}
    assert [inputs[model].keys() for model in MODELS[1:3]] == [s.keys() for s in settings]
    written = recipe_of(plan(recipe), depth=DEPTH)
    assert plan(Recipe.from_mapping(written.to_mapping())) == plan(recipe)
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe


@pytest.mark.parametrize(
    "entry", [{"parameters": {}}, {"model": "org/a", "weight": 1}, {"model": "org/a", "parameters": 3}]
)
def test_an_entry_of_members_is_a_name_or_has_parameters(entry: dict[str, Any]) -> None:
    document = {
        "merge_method": "tailor",
        "base_model": MODELS[0],
        "parameters": {"head": {"method": "ties", "members": [entry]}},
        "slices": [],
    }
    with pytest.raises(RecipeError, match=r"parameters\.head.*expected a"):
        Recipe.from_mapping(document)
