"""Mistakes that mergekit 0.1.5 makes silently are errors here, or done right. One test for each.

Depth-dependent configs, architectures that mergekit infers or misses, and layers of several kinds are in
test_architectures.py; the head that loses sources in test_three_models.py; paths with @ and + in
tests/host; bad chat templates in tests/recipe; adapters that changed in tests/models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.options import MergeOptions
from safetensors.torch import load_file

from gptailor_merge.errors import RecipeError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.planning.check import check
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import MakeFamily, recipe_of

Change = Callable[[dict[str, Any]], Any]
MERGE = 2
"""The slice that merges."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda d: d["slices"][MERGE].update(merge_method="slerp"),
            "slices[2].merge_method: unknown key",
            id="a slice's own merge_method is ignored",
        ),
        pytest.param(
            lambda d: d.update(dtpe="float32"), "dtpe: unknown key; did you mean 'dtype'?", id="top"
        ),
        pytest.param(
            lambda d: d["slices"][0].update(base="x"), "slices[0].base: unknown key", id="key of a slice"
        ),
        pytest.param(
            lambda d: d["slices"][0]["sources"][0].update(layers=[0, 1]),
            "slices[0].sources[0].layers: unknown key",
            id="key of a source",
        ),
        pytest.param(
            lambda d: d.update(parameters={"wieght": 1}),
            "parameters.wieght: no method of this recipe takes it; did you mean 'weight'?",
            id="parameter at the top",
        ),
        pytest.param(
            lambda d: d["slices"][MERGE]["parameters"].update(lamda=1),
            "slices[2].parameters.lamda: unknown parameter of task_arithmetic; did you mean 'lambda'?",
            id="parameter of a slice",
        ),
        pytest.param(
            lambda d: d["slices"][MERGE]["sources"][0]["parameters"].update(wieght=1),
            "slices[2].sources[0].parameters.wieght: unknown parameter of task_arithmetic",
            id="parameter of a source",
        ),
        pytest.param(
            lambda d: d["slices"][MERGE]["sources"][0].update(layer_range=[2, 3]),
            "slices[2].sources: sources of different length",
            id="sources of different length",
        ),
        pytest.param(
            lambda d: d["slices"][MERGE]["sources"][1].update(
                model=d["slices"][MERGE]["sources"][0]["model"]
            ),
            "slices[2].sources: a layer appears twice",
            id="a layer twice in a slice",
        ),
        pytest.param(
            lambda d: d.pop("base_model"), "base_model: is missing", id="the donor depends on a hash"
        ),
        pytest.param(
            lambda d: d.update(dtype=None),
            "dtype: is missing, and merges would be calculated in bfloat16",
            id="16 bits",
        ),
        pytest.param(
            lambda d: d["slices"][3]["sources"][0].update(layer_range=[4, 6]),
            "slices[3].sources[0].layer_range: layer out of range",
            id="layers that are not there",
        ),
    ],
)
def test_what_mergekit_ignores_or_finds_late_is_an_error(
    change: Change, message: str, family: dict[str, str], tmp_path: Path
) -> None:
    document = copy.deepcopy(recipe_of(family))
    change(document)
    for act in (check, lambda recipe: materialize(recipe, tmp_path / "out")):
        with pytest.raises(RecipeError) as caught:
            act(Recipe.from_mapping(document))
        assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_methods_name_is_checked_before_any_model_is_looked_for() -> None:
    document: dict[str, Any] = recipe_of({"base": "org/base", "math": "org/math", "code": "org/code"})
    document["slices"][MERGE]["parameters"]["method"] = "task_arithmetics"
    with pytest.raises(RecipeError, match="unknown method, found 'task_arithmetics'; did you mean"):
        materialize(Recipe.from_mapping(document), Path("never"))


def test_embeddings_and_head_are_the_bases_whatever_the_outer_slices_are(
    family: dict[str, str], tmp_path: Path
) -> None:
    document: dict[str, Any] = recipe_of(family, out_dtype="bfloat16")
    document["slices"][-1]["sources"][0]["model"] = family["code"]
    materialize(Recipe.from_mapping(document), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    base, math = (load_file(Path(family[name]) / "model.safetensors") for name in ("base", "math"))
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(written[name], base[name])
    layer = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(written[layer], math[layer])


def test_shards_are_of_a_size_that_the_hub_likes() -> None:
    assert MergeOptions().out_shard_size <= 5_000_000_000


def test_a_dtype_that_config_json_would_not_name_is_asked_for(make_family: MakeFamily) -> None:
    """Stored in several dtypes, a model comes back in the one of its config."""
    mixed = {**make_family(), "math": make_family(dtype=torch.float32)["math"]}
    select = {"sources": [{"model": mixed["code"], "layer_range": [2, 4]}], "parameters": {"op": "select"}}
    with pytest.raises(RecipeError, match="out_dtype: is missing, and the members are stored in several"):
        check(Recipe.from_mapping(recipe_of(mixed, select, dtype=None)))
    check(Recipe.from_mapping(recipe_of(mixed, select, dtype=None, out_dtype="bfloat16")))
