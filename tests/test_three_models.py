"""Composed in memory == written by mergekit == loaded back, tensor for tensor, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal, compose
from tests.conftest import DEMO, MakeFamily, recipe_of


def merge_by(method: str, family: dict[str, str], first: int, last: int) -> dict[str, Any]:
    names = {"slerp": ("base", "math"), "nearswap": ("base", "math"), "passthrough": ("base",)}
    chosen = names.get(method, ("base", "math", "code"))
    per_source = {"weight": 0.4} if method not in ("slerp", "nearswap", "model_stock") else {}
    shared: dict[str, Any] = {"t": [0.2, 0.7]} if method in ("slerp", "nearswap") else {}
    if method in ("ties", "dare_ties", "della"):
        shared["density"] = [{"filter": "mlp", "value": 0.6}, {"value": 0.4}]
    sources = [
        {
            "model": family[name],
            "layer_range": [first, last],
            **({"parameters": per_source} if per_source and (name != "base" or method == "linear") else {}),
        }
        for name in chosen
    ]
    return {"sources": sources, "parameters": {"op": "merge", "method": method, **shared}}


METHODS = ["linear", "task_arithmetic", "slerp", "ties", "dare_ties", "della", "model_stock", "nearswap"]
DTYPES: list[dict[str, str]] = [
    {"dtype": "float32", "out_dtype": "bfloat16"},
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_merges(method: str, tied: bool, make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family(tied=tied)
    recipe = Recipe.from_mapping(
        recipe_of(family, merge_by(method, family, 2, 4), dtype="float32", out_dtype="bfloat16")
    )
    assert_three_equal(recipe, tmp_path / "out")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes(stored: torch.dtype, dtypes: dict[str, str], make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family(dtype=stored)
    assert_three_equal(Recipe.from_mapping(recipe_of(family, **dtypes)), tmp_path / "out")


def test_mixed_dtypes_within_a_family(make_family: MakeFamily, tmp_path: Path) -> None:
    family = {**make_family(), "math": make_family(dtype=torch.float32)["math"]}
    assert_three_equal(Recipe.from_mapping(recipe_of(family, out_dtype="bfloat16")), tmp_path / "out")


@pytest.mark.parametrize("embeddings", ["base", "math", "merged"])
@pytest.mark.parametrize("head", ["base", "code", "merged"])
def test_embeddings_and_head(embeddings: str, head: str, family: dict[str, str], tmp_path: Path) -> None:
    merged = {"method": "linear", "weights": {family["math"]: 0.5, family["code"]: 0.5, "base": 0.25}}
    names = {"base": "base", "merged": merged}
    chosen = {
        "embeddings": names.get(embeddings, family.get(embeddings)),
        "head": names.get(head, family.get(head)),
    }
    composed = assert_three_equal(Recipe.from_mapping(recipe_of(family, parameters=chosen)), tmp_path / "out")
    base = load_file(Path(family["base"]) / "model.safetensors")
    same = torch.equal(composed.state_dict()["lm_head.weight"], base["lm_head.weight"])
    assert same == (head == "base")


def test_a_merge_of_different_layers_and_a_layer_used_twice(family: dict[str, str], tmp_path: Path) -> None:
    document = recipe_of(family)
    twice = {"sources": [{"model": family["math"], "layer_range": [0, 1]}], "parameters": {"op": "select"}}
    crossed = {
        "sources": [
            {"model": family["math"], "layer_range": [2, 3], "parameters": {"weight": 0.5}},
            {"model": family["code"], "layer_range": [3, 4], "parameters": {"weight": 0.5}},
        ],
        "parameters": {"op": "merge", "method": "linear"},
    }
    recipe = Recipe.from_mapping({**document, "slices": [twice, twice, crossed]})
    composed = assert_three_equal(recipe, tmp_path / "out")
    assert [layer.self_attn.layer_idx for layer in composed.model.layers] == [0, 1, 2]


def test_the_papers_merge_is_what_the_paper_says(family: dict[str, str]) -> None:
    """W = W_base + λ Σ_k (W_k - W_base), arXiv 2506.20480."""
    rate = 0.6
    merge = {
        "sources": [{"model": family[n], "layer_range": [2, 4]} for n in ("math", "code")],
        "parameters": {"op": "merge", "method": "task_arithmetic", "weight": rate},
    }
    composed = compose(Recipe.from_mapping(recipe_of(family, merge, dtype="float32")))
    weights = {n: load_file(Path(d) / "model.safetensors") for n, d in family.items()}
    for slot, layer in ((1, 2), (2, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        base, math, code = (weights[n][name.format(layer)].float() for n in ("base", "math", "code"))
        expected = base + rate * ((math - base) + (code - base))
        torch.testing.assert_close(composed.state_dict()[name.format(slot)], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "ties"])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
def test_the_built_in_family(method: str, out_dtype: str, tmp_path: Path) -> None:
    family = {name: str(DEMO / "family" / name) for name in ("base", "maths", "code")}
    family["math"] = family.pop("maths")
    document = recipe_of(family, merge_by(method, family, 2, 9), dtype="float32", out_dtype=out_dtype)
    document["slices"][-1]["sources"][0]["layer_range"] = [9, 12]  # type: ignore[index]
    assert_three_equal(Recipe.from_mapping(document), tmp_path / "out")
