"""Several layers of one model in one slot, which mergekit alone refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.scripts import multimerge, run_yaml
from safetensors.torch import load_file

from gptailor_merge.cli.recipe_table import rows
from gptailor_merge.errors import RecipeError
from gptailor_merge.host.lowering import is_lowered, lower
from gptailor_merge.host.materialize import materialize
from gptailor_merge.planning.check import check, check_with_family
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal, compose
from tests.conftest import recipe_of
from tests.host.test_exporting import assert_same_model, run_plain, write_plain
from tests.host.test_hook import assert_same_weights, write
from tests.packages import command
from tests.zoo import write_family

NAMES = {"base": "org/base", "math": "org/math", "code": "org/code"}


def merge(*sources: tuple[str, int, dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    return {
        "sources": [
            {"model": model, "layer_range": [layer, layer + 1], "parameters": own}
            for model, layer, own in sources
        ],
        "parameters": {"op": "merge", **parameters},
    }


BASE: dict[str, Any] = {"base": True}


def laco(model: str, method: str = "task_arithmetic", **own: Any) -> dict[str, Any]:
    """Layers 2 and 3 merged into layer 1, as LaCo does (arXiv 2402.11187)."""
    return merge((model, 1, BASE), (model, 2, own), (model, 3, own), method=method)


def of(family: dict[str, str], made: dict[str, Any], **top: Any) -> Recipe:
    """Layer 0, the merge, and layer 4."""
    document = recipe_of(family, made, **top)
    del document["slices"][1]  # type: ignore[attr-defined]
    return Recipe.from_mapping(document)


CASES = {
    "laco": lambda f: laco(f["base"], weight=0.5),
    "of a variant": lambda f: laco(f["math"], weight=0.5),
    "ties": lambda f: laco(f["base"], "ties", weight=0.7, density=0.5),
    "random numbers": lambda f: laco(f["base"], "dare_ties", weight=0.7, density=0.5),
    "no base": lambda f: merge(
        (f["base"], 2, {"weight": 0.5}), (f["base"], 3, {"weight": 0.25}), method="linear"
    ),
    "two of one": lambda f: merge((f["code"], 3, {}), (f["code"], 2, BASE), method="slerp", t=0.3),
    "twice two": lambda f: merge(
        *[(f[n], i, {"weight": 0.3}) for n in ("math", "code") for i in (2, 3)],
        (f["base"], 2, BASE),
        method="task_arithmetic",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("out_dtype", ["bfloat16", None])
def test_the_three_models_are_one(
    name: str, out_dtype: str | None, family: dict[str, str], tmp_path: Path
) -> None:
    dtypes = {"out_dtype": out_dtype} if out_dtype else {}
    assert_three_equal(of(family, CASES[name](family), **dtypes), tmp_path / "out")


def test_laco_is_what_its_paper_says(family: dict[str, str]) -> None:
    """W* = W_l + Σ_k (W_{l+k} - W_l), arXiv 2402.11187; the base is the source that is marked."""
    weights = load_file(Path(family["base"]) / "model.safetensors")
    first, second, third = (weights[f"model.layers.{i}.mlp.up_proj.weight"].float() for i in (1, 2, 3))
    made = compose(of(family, laco(family["base"], weight=1.0))).state_dict()
    expected = first + (second - first) + (third - first)
    torch.testing.assert_close(made["model.layers.1.mlp.up_proj.weight"], expected, rtol=1e-6, atol=1e-6)
    other = merge(
        *[(family["base"], i, BASE if i == 3 else {"weight": 1.0}) for i in (1, 2, 3)],
        method="task_arithmetic",
    )
    made = compose(of(family, other)).state_dict()
    expected = third + (first - third) + (second - third)
    torch.testing.assert_close(made["model.layers.1.mlp.up_proj.weight"], expected, rtol=1e-6, atol=1e-6)


def test_stock_mergekit_yaml_writes_it(family: dict[str, str], tmp_path: Path) -> None:
    recipe = of(family, laco(family["base"], weight=0.5), out_dtype="bfloat16")
    file = write(tmp_path / "recipe.yml", recipe.to_mapping())
    done = command(run_yaml.main, file, str(tmp_path / "stock"))
    assert done.returncode == 0, done.stderr
    materialize(recipe, tmp_path / "ours")
    assert_same_weights(tmp_path / "stock", tmp_path / "ours")


@pytest.mark.weekly
def test_mergekit_multi_takes_several_layers_of_a_model_that_it_has_just_made(
    family: dict[str, str], tmp_path: Path
) -> None:
    average = {
        "name": "average",
        "merge_method": "linear",
        "models": [{"model": family[n], "parameters": {"weight": 0.5}} for n in ("math", "code")],
    }
    document = of(family, laco("average", weight=0.5)).to_mapping()
    file = write(tmp_path / "multi.yml", average, document)
    out, between = str(tmp_path / "out"), str(tmp_path / "between")
    done = command(multimerge.main, file, "--out-path", out, "-I", between)
    assert done.returncode == 0, done.stderr
    materialize(of(family, laco(f"{between}/average", weight=0.5)), tmp_path / "ours")
    assert_same_weights(tmp_path / "out", tmp_path / "ours")


def test_a_model_has_another_reference_each_time_that_a_slice_takes_it() -> None:
    made = merge(*[("org/math@v1", i, {"weight": 0.1}) for i in (1, 2, 3)], method="linear")
    lowered = lower(plan(of(NAMES, made)))
    configuration = MergeConfiguration.model_validate(lowered)
    references = [source.model for source in configuration.slices[2].sources]
    assert len(set(references)) == 3
    assert {(r.model.path, r.model.revision) for r in references} == {("org/math", "v1")}
    again = configuration.model_dump(mode="json", exclude_none=True)
    assert is_lowered(again)
    assert MergeConfiguration.model_validate(again) == configuration


@pytest.mark.parametrize("name", ["laco", "twice two", "two of one"])
def test_the_plain_configuration_makes_the_same_model(
    name: str, family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = of(family, CASES[name](family), out_dtype="bfloat16")
    assert write_plain(recipe, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    materialize(recipe, tmp_path / "ours")
    assert_same_model(tmp_path / "ours", tmp_path / "stock")


def test_a_plain_configuration_with_skeletons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qwen3's config lists the kinds of its layers: every intermediate model needs its own list."""
    family = write_family(tmp_path, "qwen3")
    recipe = Recipe.from_mapping(
        {
            "merge_method": "tailor",
            "base_model": family["base"],
            "dtype": "float32",
            "slices": [
                {
                    "sources": [{"model": family["code"], "layer_range": [2, 4]}],
                    "parameters": {"op": "select"},
                },
                merge(
                    (family["base"], 4, BASE),
                    (family["base"], 6, {"weight": 0.5}),
                    (family["base"], 7, {"weight": 0.5}),
                    method="task_arithmetic",
                ),
            ],
        }
    )
    write_plain(recipe, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    assert_three_equal(recipe, tmp_path / "ours")
    assert_same_model(tmp_path / "ours", tmp_path / "stock")


def test_layers_of_unlike_kinds_are_not_merged(tmp_path: Path) -> None:
    family = write_family(tmp_path, "qwen3")  # layers 1, 2 and 5 have full attention
    made = merge((family["base"], 2, BASE), (family["base"], 3, {"weight": 1.0}), method="task_arithmetic")
    with pytest.raises(RecipeError, match="layers of unlike kinds"):
        check_with_family(of(family, made))


def test_all_layers_of_a_model_stand_in_its_column() -> None:
    (row,) = [row for row in rows(of(NAMES, laco("org/base", weight=0.5))) if row.label == "1"]
    assert row.cells == {"org/base": "1 as base; 2 × 0.5; 3 × 0.5"}


@pytest.mark.parametrize(
    ("made", "top", "message"),
    [
        (
            merge(*[("org/base", i, {"weight": 1.0}) for i in (1, 2)], method="ties"),
            {},
            "org/base gives several layers to one slot; say which of them is ties's base by parameters: "
            "{base: true} at that source",
        ),
        (merge(("m/a", 1, BASE), ("m/a", 2, BASE), method="ties"), {}, "ties takes one base, found 2"),
        (
            merge(("m/a", 1, {"weight": 1, **BASE}), ("m/a", 2, {"weight": 1}), method="linear"),
            {},
            "sources[0].parameters.base: linear takes no base",
        ),
        (
            merge(("m/a", 1, {"base": 1}), ("m/a", 2, {"weight": 1}), method="ties"),
            {},
            "parameters.base: expected true, found 1",
        ),
        (
            {**merge(("m/a", 1, BASE), ("m/a", 2, {"weight": 1}), method="ties"), "base_model": "m/b"},
            {},
            "base_model: the source that is marked as base is of m/a",
        ),
        (
            merge(*[("m/a", 1, {"weight": 1})] * 2, method="linear"),
            {},
            "a layer appears twice; give it once, with the weight of both",
        ),
        (
            laco("org/base", weight=1.0),
            {"chat_template": "auto"},
            "chat_template: auto takes the commonest, and a model that gives several layers to a slot "
            "counts as several; name a template",
        ),
    ],
)
def test_mistakes(made: dict[str, Any], top: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(of(NAMES, made, **top))
    assert message in str(caught.value)


def test_a_method_that_needs_no_base_has_none_unless_it_is_marked() -> None:
    sources = [("org/base", i, {"weight": 0.5}) for i in (1, 2, 3)]
    assert plan(of(NAMES, merge(*sources, method="multislerp"))).slots[1].operation.base is None
    sources[1] = ("org/base", 2, BASE)
    assert plan(of(NAMES, merge(*sources, method="multislerp"))).slots[1].operation.base == 1
