"""Every class of mistake in a recipe, with its message."""

from __future__ import annotations

from typing import Any

import pytest

from gptailor_merge.errors import RecipeError
from gptailor_merge.planning.check import check, depth_problems
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan, Slot
from gptailor_merge.recipe.recipe import Recipe


def source(model: str, first: int, last: int, **parameters: object) -> dict[str, Any]:
    made: dict[str, Any] = {"model": model, "layer_range": [first, last]}
    return {**made, "parameters": parameters} if parameters else made


def part(*sources: dict[str, Any], base_model: str | None = None, **parameters: object) -> dict[str, Any]:
    made: dict[str, Any] = {"sources": list(sources), "parameters": parameters}
    return {**made, "base_model": base_model} if base_model else made


def recipe(*parts: dict[str, Any], **top: object) -> Recipe:
    return Recipe.from_mapping({"merge_method": "tailor", "base_model": "base", "slices": list(parts), **top})


def resolved(*parts: dict[str, Any], **top: object) -> Plan:
    return plan(recipe(*parts, **top))


SELECT = part(source("m", 0, 1), op="select")
TWO = (source("a", 0, 1, weight=0.5), source("b", 0, 1, weight=0.5))


@pytest.mark.parametrize(
    ("parts", "top", "messages"),
    [
        (
            [part(source("m", 0, 1))],
            {},
            ["slices[0].parameters: op is missing; one of remove, select, merge"],
        ),
        (
            [part(source("m", 0, 1), op="slect")],
            {},
            ["op: unknown op, found 'slect'; did you mean 'select'?"],
        ),
        ([part(op="select")], {}, ["slices[0].sources: is empty; at least one source is needed"]),
        (
            [part(*TWO, op="select")],
            {},
            ["select takes one source, found 2; to combine them write op: merge"],
        ),
        ([part(source("m", 0, 1), op="select", method="linear")], {}, ["did you mean op: merge?"]),
        ([part(source("m", 2, 2), op="select")], {}, ["0 <= first < last, found [2, 2]"]),
        ([part(source("m", 2, 0), op="select")], {}, ["0 <= first < last, found [2, 0]"]),
        ([SELECT], {"chat_template": "lama3"}, ["chat_template: expected auto", "did you mean 'llama3'?"]),
        (
            [SELECT],
            {"parameters": {"head": {"method": "linear", "weights": {"base": 1, "m": 1, "m ": 1}}}},
            ["parameters.head: unknown member, found 'm '; did you mean 'm'?"],
        ),
        ([part(source("m", -1, 2), op="select")], {}, ["0 <= first < last, found [-1, 2]"]),
        ([part(source("m", 0, 1), op="select", t=1)], {}, ["parameters.t: unknown parameter of select"]),
        ([part(*TWO, op="merge")], {}, ["slices[0].parameters: method is missing"]),
        ([part(*TWO, op="merge", method="linaer")], {}, ["found 'linaer'; did you mean 'linear'?"]),
        ([part(*TWO, op="merge", method="passthrough")], {}, ["unknown method, found 'passthrough'"]),
        (
            [part(source("a", 0, 1, wieght=1), source("b", 0, 1, weight=1), op="merge", method="linear")],
            {},
            ["slices[0].sources[0].parameters.wieght: unknown parameter of linear; did you mean 'weight'?"],
        ),
        (
            [part(source("a", 0, 1), source("b", 0, 1, weight=1), op="merge", method="linear")],
            {},
            ["slices[0].sources[0]: weight is missing; linear needs it for a"],
        ),
        (
            [part(*TWO, op="merge", method="slerp", base_model="a")],
            {},
            ["sources[0].parameters.weight: unknown parameter of slerp; known are t"],
        ),
        (
            [part(source("base", 0, 1), source("a", 0, 1), op="merge", method="slerp")],
            {},
            ["slices[0].parameters: t is missing"],
        ),
        (
            [part(source("a", 0, 1), source("b", 0, 1), op="merge", method="slerp", t=0.5)],
            {},
            [
                "slerp needs a base among its 2 sources and base is none of them; set the slice's base_model to a or b"
            ],
        ),
        (
            [part(source("a", 0, 1, weight=1), source("b", 1, 2, weight=1), op="merge", method="ties")],
            {},
            ["ties needs the base's layers, and the sources take different ones; add base as a source"],
        ),
        ([part(*TWO, op="merge", method="linear", base_model="a")], {}, ["base_model: linear takes no base"]),
        ([part(source("m", 0, 1), op="select", base_model="a")], {}, ["only a merge takes a base_model"]),
        (
            [part(source("a", 0, 2, weight=1), source("b", 0, 3, weight=1), op="merge", method="linear")],
            {},
            ["sources of different length: a [0, 2] has 2, b [0, 3] has 3 layers; all must be equal"],
        ),
        (
            [part(source("a", 0, 1, weight=1), source("a", 0, 1, weight=1), op="merge", method="linear")],
            {},
            ["a layer appears twice; give it once, with the weight of both"],
        ),
        (
            [part(source("a", 0, 1, weight=1), op="merge", method="linear")],
            {},
            ["merge takes two sources or more; for one write op: select"],
        ),
        (
            [part(source("base", 0, 1), source("a", 0, 1), op="merge", method="model_stock")],
            {},
            ["model_stock: merge method requires at least 3 inputs; got 2"],
        ),
        (
            [SELECT, part(source("base", 1, 3), op="remove"), part(source("base", 2, 4), op="remove")],
            {},
            ["slices[2]: overlapping removal: layer 2 is already removed by slices[1]"],
        ),
        (
            [part(source("m", 0, 3), op="select"), part(source("base", 2, 3), op="remove")],
            {},
            ["slices[0].sources[0].layer_range: layer 2 is used here and removed by slices[1]"],
        ),
        (
            [SELECT, part(source("m", 1, 2), op="remove", t=1)],
            {},
            ["a removed slice takes no parameters but op"],
        ),
        ([part(source("m", 0, 3), op="remove")], {}, ["slices: the model would be empty"]),
        ([], {}, ["slices: the model would be empty"]),
        ([SELECT], {"dtype": "fp32"}, ["dtype: unknown dtype, found 'fp32'"]),
        ([SELECT], {"parameters": {"wieght": 1}}, ["parameters.wieght: no method of this recipe takes it"]),
        ([SELECT], {"parameters": {"scale": "much"}}, ["parameters.scale: input should be a valid number"]),
        ([SELECT], {"parameters": {"embeddings": "n"}}, ["parameters.embeddings: unknown member, found 'n'"]),
        (
            [SELECT],
            {"parameters": {"head": {"method": "slerp", "weights": {"m": 1, "base": 1}}}},
            ["parameters.head.weights: unknown parameter of slerp; known are t"],
        ),
        (
            [part(*TWO, op="merge", method="linear", normalize="maybe")],
            {},
            ["parameters.normalize: input should be a valid boolean", "found 'maybe'"],
        ),
        (
            [part(*TWO, op="merge", method="ties", density=[{"filter": "layers.3", "value": 1}])],
            {},
            ["filters see a tensor's name inside its layer"],
        ),
        (
            [part(*TWO, op="merge", method="slerp", base_model="a", t=[{"filter": "mlp", "value": 1}])],
            {},
            ["unknown parameter of slerp"],
        ),
        (
            [
                part(
                    source("base", 0, 1),
                    source("a", 0, 1),
                    op="merge",
                    method="slerp",
                    t=[{"filter": "mlp", "value": 1}],
                )
            ],
            {},
            ["t has no value for tensors that none of its filters match; end the list with {value: …}"],
        ),
        ([part(*TWO, op="merge", method="ties", density=[])], {}, ["density: an empty list has no value"]),
        ([part(*TWO, op="merge", method="ties", density=[[1, 2]])], {}, ["expected single values in a list"]),
        (
            [part(*TWO, op="merge", method="ties", density=[0.5, {"filter": "mlp", "value": 1}])],
            {},
            ["parameters.density: mixes plain values and {filter: …, value: …}"],
        ),
        (
            [part(source("a", 0, 1, normalize=True, weight=1), TWO[1], op="merge", method="linear")],
            {},
            ["linear takes it for the whole slice, not for a source"],
        ),
    ],
)
def test_mistakes_are_named(parts: list[dict[str, Any]], top: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe(*parts, **top))
    for message in messages:
        assert message in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        plan(recipe(part(source("m", 0, 1), op="slect"), part(*TWO, op="merge", method="linaer")))
    assert [p.where for p in caught.value.problems] == [
        "slices[0].parameters.op",
        "slices[1].parameters.method",
    ]


def test_a_base_that_is_absent_is_one_mistake() -> None:
    """The base that would be added is no third source of the user's."""
    with pytest.raises(RecipeError) as caught:
        check(recipe(part(source("a", 0, 1), source("b", 0, 1), op="merge", method="slerp", t=0.5)))
    assert [p.where for p in caught.value.problems] == ["slices[0].base_model"]


def test_layers_out_of_range_are_found_where_the_depth_is_known() -> None:
    found = depth_problems(recipe(part(source("m", 3, 9), op="select"), SELECT), {"m": 8}.get)
    assert [p.where for p in found] == ["slices[0].sources[0].layer_range"]
    assert found[0].message == (
        "layer out of range, found [3, 9]; m has 8 layers, so at most [0, 8] would be right"
    )


def test_the_base_is_added_where_the_method_needs_it() -> None:
    (slot,) = resolved(part(*TWO, op="merge", method="task_arithmetic")).slots
    assert slot.layers == (("base", 0), ("a", 0), ("b", 0))
    assert slot.operation.base == 0
    assert slot.operation.inputs == ((), (("weight", 0.5),), (("weight", 0.5),))


def test_a_slice_may_have_its_own_base() -> None:
    (slot,) = resolved(
        part(source("a", 0, 1), source("b", 1, 2), op="merge", method="slerp", t=0.5, base_model="b")
    ).slots
    assert slot == Slot(layers=(("a", 0), ("b", 1)), operation=slot.operation)
    assert slot.operation.base == 1


def test_parameters_have_mergekits_precedence_and_gradients() -> None:
    slots = resolved(
        part(
            source("a", 0, 3, weight=[0, 1]),
            source("b", 0, 3),
            source("c", 0, 3),
            op="merge",
            method="ties",
            density=[{"filter": "mlp", "value": 0.1}],
            weight=0.3,
        ),
        parameters={"weight": 0.9, "density": 0.7, "normalize": False},
    ).slots
    inputs = [[dict(i) for i in slot.operation.inputs] for slot in slots]
    density = (("mlp", 0.1), (None, 0.7))
    assert [i[1] for i in inputs] == [{"weight": w, "density": density} for w in (0.0, 0.5, 1.0)]
    assert [i[2] for i in inputs] == [{"weight": 0.3, "density": density}] * 3
    assert {slot.operation.shared for slot in slots} == {(("normalize", False),)}


def test_embeddings_may_be_merged() -> None:
    weights = {"base": 0.25, "m": 0.75}
    made = resolved(SELECT, parameters={"embeddings": {"method": "linear", "weights": weights}})
    models, operation = made.embeddings
    assert models == ("base", "m")
    assert operation.inputs == ((("weight", 0.25),), (("weight", 0.75),))
    assert made.head[0] == ("base",)
