from __future__ import annotations

from mergekit.config import MergeConfiguration

from gptailor_merge.host.lowering import is_lowered, lower
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Operation
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of

NAMES = {"base": "base", "math": "math", "code": "code"}


def test_every_slot_is_a_slice_between_embeddings_and_the_rest_and_head() -> None:
    made = plan(Recipe.from_mapping(recipe_of(NAMES, parameters={"head": "math"})))
    lowered = lower(made)
    ranges = [[tuple(s["layer_range"]) for s in part["sources"]] for part in lowered["slices"]]
    assert ranges == [[(0, 0)], [(0, 1)], [(2, 3)] * 3, [(3, 4)] * 3, [(4, 5)], [(-1, 0)], [(0, 0)]]
    assert lowered["slices"][0]["sources"][0]["model"] == "base"
    assert lowered["slices"][-1]["sources"][0]["model"] == "math"
    operations = [Operation.from_json(part["parameters"]["slot"]) for part in lowered["slices"]]
    assert operations[1:-2] == [slot.operation for slot in made.slots]


def test_mergekit_accepts_what_comes_out_and_nothing_is_lost_on_the_way() -> None:
    lowered = lower(plan(Recipe.from_mapping(recipe_of(NAMES, dtype="float32", out_dtype="bfloat16"))))
    configuration = MergeConfiguration.model_validate(lowered)
    assert (configuration.dtype, configuration.out_dtype) == ("float32", "bfloat16")
    again = configuration.model_dump(mode="json", exclude_none=True)
    assert is_lowered(again)
    assert MergeConfiguration.model_validate(again) == configuration


def test_the_first_slice_is_padded_for_a_head_of_more_sources() -> None:
    head = {"method": "linear", "weights": {"math": 0.5, "code": 0.5}}
    lowered = lower(plan(Recipe.from_mapping(recipe_of(NAMES, parameters={"head": head}))))
    assert [s["model"] for s in lowered["slices"][0]["sources"]] == ["base", "math"]
    assert len(Operation.from_json(lowered["slices"][0]["parameters"]["slot"]).inputs) == 1


def test_plain_configurations_are_not_lowered_ones() -> None:
    assert not is_lowered(recipe_of(NAMES))
    assert not is_lowered({"merge_method": "slerp", "slices": []})
