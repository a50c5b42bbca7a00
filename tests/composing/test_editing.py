"""Layers without attention or MLP, and repaired ones: the same model by every way, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.scripts import run_yaml
from safetensors.torch import load_file, save_file
from torch import nn

from gptailor_merge.cli.recipe_table import comparison, rows
from gptailor_merge.composing.editing import (
    Placed,
    edited,
    from_json,
    load_map,
    save_gains,
    save_map,
    to_json,
)
from gptailor_merge.composing.norms import with_gains
from gptailor_merge.composing.output_projections import _keeps_zero, exit_of, placed
from gptailor_merge.digests import digest_of_bytes
from gptailor_merge.errors import FamilyError, RecipeError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.family import Family
from gptailor_merge.planning.check import check, check_with_family
from gptailor_merge.planning.resolve import plan
from gptailor_merge.planning.writing import recipe_of as recipe_of_plan
from gptailor_merge.recipe.plan import NORMS, Edit
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import IDS, assert_three_equal, compose
from tests.conftest import recipe_of
from tests.host.test_exporting import assert_same_model, run_plain, write_plain
from tests.host.test_hook import assert_same_weights, write
from tests.packages import command
from tests.zoo import ZOO, config_of, write_family

PARTS = ("attention", "mlp")
EXPERTS = "it does not end with a linear map (as mixtures of experts do not)"
NO_PART = {
    ("qwen3_moe", "mlp"): EXPERTS,
    ("gpt_oss", "mlp"): EXPERTS,
    ("lfm2", "attention"): "expected one, found none in its layer",
}
"""(architecture, part) of layer 3 of the zoo's 8 -> why the part has no exit."""
NAMES = {"base": "org/base", "math": "org/math", "code": "org/code"}


def select(model: str, layer: int, **parameters: Any) -> dict[str, Any]:
    source = {"model": model, "layer_range": [layer, layer + 1]}
    return {"sources": [source], "parameters": {"op": "select", **parameters}}


def whole(family: dict[str, str], depth: int, edited_layer: dict[str, Any], **top: Any) -> Recipe:
    """All layers of the base, that of one slice edited."""
    at = edited_layer["sources"][0]["layer_range"][0]
    slices = [edited_layer if i == at else select(family["base"], i) for i in range(depth)]
    return Recipe.from_mapping(
        {"merge_method": "tailor", "base_model": family["base"], "slices": slices, **top}
    )


def zeros(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ZOO)
def test_without_a_part_is_as_if_it_were_skipped(name: str, part: str, tmp_path: Path) -> None:
    """Logits, bit for bit, of a model whose block, and the norm behind it, are made to give zeros."""
    family = write_family(tmp_path, name, torch.float32)
    made = whole(family, 8, select(family["base"], 3, without=part))
    if (name, part) in NO_PART:
        with pytest.raises(RecipeError) as caught:
            check_with_family(made)
        assert NO_PART[name, part] in str(caught.value)
        assert caught.value.problems[0].where == "slices[3].parameters.without"
        return
    composed = assert_three_equal(made, tmp_path / "out")
    full = compose(whole(family, 8, select(family["base"], 3)))
    ends = exit_of(Family.load(family["base"], {}).base.config, 3, part)
    layer = full.base_model.layers[3]
    with torch.inference_mode():
        before = full(IDS).logits
        blocks = {ends.tensors[0].split(".")[0], *([ends.changed_by] if ends.changed_by else [])}
        for block in blocks:
            getattr(layer, block).register_forward_hook(zeros)
        skipped = full(IDS).logits
        assert torch.equal(composed(IDS).logits, skipped)
        assert not torch.equal(before, skipped)


def test_stock_mergekit_yaml_leaves_a_part_out(family: dict[str, str], tmp_path: Path) -> None:
    made = whole(family, 5, select(family["base"], 2, without="mlp"))
    file = write(tmp_path / "recipe.yml", made.to_mapping())
    done = command(run_yaml.main, file, str(tmp_path / "stock"))
    assert done.returncode == 0, done.stderr
    materialize(made, tmp_path / "ours")
    assert_same_weights(tmp_path / "stock", tmp_path / "ours")
    assert not load_file(tmp_path / "ours" / "model.safetensors")["model.layers.2.mlp.down_proj.weight"].any()


def merged(family: dict[str, str], **parameters: Any) -> dict[str, Any]:
    return {
        "sources": [
            {"model": family[n], "layer_range": [2, 4], "parameters": {"weight": 0.4}}
            for n in ("math", "code")
        ],
        "parameters": {"op": "merge", "method": "task_arithmetic", **parameters},
    }


@pytest.mark.parametrize("out_dtype", ["bfloat16", None])
def test_a_merged_layer_can_go_without_a_part(
    out_dtype: str | None, family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = {"out_dtype": out_dtype} if out_dtype else {}
    made = Recipe.from_mapping(recipe_of(family, merged(family, without="attention"), **dtypes))
    assert_three_equal(made, tmp_path / "ours")
    assert write_plain(made, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    assert_same_model(tmp_path / "ours", tmp_path / "stock")


def test_the_plain_configuration_keeps_a_scale_beside(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = [{"filter": "mlp", "value": 0.5}, {"value": 1.0}]
    made = whole(family, 5, select(family["base"], 2, without="attention", scale=scale))
    assert not write_plain(made, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    assert_three_equal(made, tmp_path / "ours")
    assert_same_model(tmp_path / "ours", tmp_path / "stock")


def a_map(width: int = 16) -> torch.Tensor:
    torch.manual_seed(7)
    return torch.eye(width) + 0.1 * torch.randn(width, width)


def repaired(model: str, layer: int, directory: Path, matrix: torch.Tensor | None = None) -> dict[str, Any]:
    file, digest = save_map(a_map() if matrix is None else matrix, directory, "map.safetensors")
    return select(model, layer, repair=str(file), repair_digest=digest)


@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox", "starcoder2", "lfm2"])
def test_a_repair_multiplies_the_last_weight_of_the_mlp(name: str, out_dtype: str, tmp_path: Path) -> None:
    """W' = M W and b' = M b, and the MLP gives M times what it gave."""
    family = write_family(tmp_path, name)
    part = repaired(family["base"], 3, tmp_path)
    made = whole(family, 8, part, dtype="float32", out_dtype=out_dtype)
    composed = assert_three_equal(made, tmp_path / "out")
    plain = compose(whole(family, 8, select(family["base"], 3), dtype="float32"))
    ends = exit_of(Family.load(family["base"], {}).base.config, 3, "mlp")
    for tensor in ends.tensors:
        before = plain.base_model.layers[3].get_parameter(tensor)
        after = composed.base_model.layers[3].get_parameter(tensor)
        expected = (a_map().double() @ before.double()).to(torch.float32).to(after.dtype)
        assert torch.equal(after, expected)
    others = set(plain.state_dict()) - {n for n in plain.state_dict() if n.endswith(ends.tensors)}
    same = [torch.equal(plain.state_dict()[n].to(after.dtype), composed.state_dict()[n]) for n in others]
    assert all(same)


def test_stock_mergekit_yaml_repairs_and_sets_norms(family: dict[str, str], tmp_path: Path) -> None:
    made = whole(family, 5, repaired(family["base"], 2, tmp_path))
    names = ("layers.2.input_layernorm.weight", "layers.4.input_layernorm.weight", "model.norm.weight")
    gains = {name: torch.full((16,), 2.0 + place) for place, name in enumerate(names)}
    file, digest = save_gains(gains, tmp_path, "gains.safetensors")
    made = recipe_of_plan(with_gains(plan(made), Edit(NORMS, digest, str(file))), 5)
    file = write(tmp_path / "recipe.yml", made.to_mapping())
    done = command(run_yaml.main, file, str(tmp_path / "stock"))
    assert done.returncode == 0, done.stderr
    materialize(made, tmp_path / "ours")
    assert_same_weights(tmp_path / "stock", tmp_path / "ours")
    written = load_file(tmp_path / "stock" / "model.safetensors")
    for name, gain in gains.items():
        assert torch.equal(written[name.replace("layers.", "model.layers.")].float(), gain)


def test_a_repair_has_no_plain_form(family: dict[str, str], tmp_path: Path) -> None:
    made = whole(family, 5, repaired(family["base"], 2, tmp_path))
    with pytest.raises(RecipeError, match="a repair is a matrix product, which no method of mergekit"):
        write_plain(made, tmp_path / "plain")


def test_the_digest_is_that_of_the_map_wherever_it_lies(family: dict[str, str], tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.add(plan(whole(family, 5, repaired(family["base"], 2, tmp_path / name))).digest)
    assert len(digests) == 1
    (tmp_path / "c").mkdir()
    other = plan(whole(family, 5, repaired(family["base"], 2, tmp_path / "c", 2 * a_map()))).digest
    without = [plan(whole(family, 5, select(family["base"], 2, without=p))).digest for p in PARTS]
    assert len({*digests, other, *without, plan(whole(family, 5, select(family["base"], 2))).digest}) == 5


def test_a_repaired_layer_may_go_without_attention(family: dict[str, str], tmp_path: Path) -> None:
    part = repaired(family["base"], 2, tmp_path)
    part["parameters"]["without"] = "attention"
    made = whole(family, 5, part)
    assert_three_equal(made, tmp_path / "out")
    assert rows(made)[2].how == "select, without attention, repaired"


def test_edits_are_drawn_and_compared() -> None:
    first, second = (
        Recipe.from_mapping(recipe_of(NAMES, merged(NAMES, **own))) for own in ({}, {"without": "mlp"})
    )
    assert [(row.label, row.how) for row in rows(second)[3:5]] == [
        ("1-2", "task_arithmetic, without mlp"),
        ("3", "select"),
    ]
    assert [row.mark for row in comparison(first, second)] == [" ", "-", "+", " "]


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_what_a_norm_changes_afterwards_cannot_be_repaired(name: str, tmp_path: Path) -> None:
    family = write_family(tmp_path, name)
    made = whole(family, 8, repaired(family["base"], 3, tmp_path))
    with pytest.raises(
        RecipeError, match="cannot be repaired: post_feedforward_layernorm changes its result"
    ):
        check_with_family(made)


def test_a_norm_with_a_bias_behind_a_part_does_not_let_zero_be_zero() -> None:
    assert not _keeps_zero(nn.LayerNorm(4))
    assert _keeps_zero(nn.RMSNorm(4))
    assert _keeps_zero(nn.LayerNorm(4, bias=False))


def test_every_layer_of_an_architecture_is_looked_at_by_itself() -> None:
    config = config_of("qwen3_moe").to_dict()  # layers 0 and 5 are dense
    edit = Edit("mlp")
    assert placed([edit], config, 5) == (Placed(edit, ("mlp.down_proj.weight",)),)
    with pytest.raises(FamilyError, match="the mlp of layer 4 of qwen3_moe"):
        placed([edit], config, 4)


def test_edits_survive_json() -> None:
    both = (
        Placed(Edit("attention"), ("a.weight", "a.bias")),
        Placed(Edit("norms", "0" * 16, "f"), (), "a.3."),
    )
    assert from_json(to_json(both)) == both
    assert from_json(to_json(both))[1].edit.file == "f"
    assert from_json("") == ()


def test_an_edit_leaves_other_tensors_alone() -> None:
    tensor = torch.ones(2)
    assert edited([Placed(Edit("mlp"), ("a",))], tensor, "b") is tensor
    assert not edited([Placed(Edit("mlp"), ("a",))], tensor, "a").any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"without": "atention"}, "parameters.without: expected attention or mlp, found 'atention'; did you"),
        ({"without": True}, "parameters.without: expected attention or mlp, found True"),
        ({"repair": "map"}, "slices[0].parameters: repair_digest is missing"),
        ({"repair_digest": "0"}, "slices[0].parameters: repair is missing"),
        ({"repair": 1, "repair_digest": "0"}, "parameters.repair: expected a text, in quotes, found 1"),
        (
            {"without": "mlp", "repair": "a", "repair_digest": "0"},
            "parameters.repair: the repair is of the MLP, which this slice leaves out",
        ),
        ({"repair": "a", "repair_digest": "0"}, "slices[0].parameters.repair: no such file, found 'a'"),
    ],
)
def test_mistakes(parameters: dict[str, Any], message: str) -> None:
    made = {"merge_method": "tailor", "base_model": "org/a", "slices": [select("org/a", 0, **parameters)]}
    with pytest.raises(RecipeError) as caught:
        check(Recipe.from_mapping(made))
    assert message in str(caught.value)


def test_a_map_is_of_one_layer_and_of_its_width(family: dict[str, str], tmp_path: Path) -> None:
    part = repaired(family["base"], 2, tmp_path, torch.eye(3))
    with pytest.raises(RecipeError, match=r"the map is \[3, 3\], and the layer's MLP takes \[16, 16\]"):
        check(whole(family, 5, part))
    part["sources"][0]["layer_range"] = [2, 4]
    with pytest.raises(RecipeError, match="a map is of one layer, and this slice has 2; split it"):
        check(whole(family, 5, part))


def test_another_map_than_the_recipe_was_made_with_is_refused(family: dict[str, str], tmp_path: Path) -> None:
    part = repaired(family["base"], 2, tmp_path)
    save_map(torch.eye(16), tmp_path, "map.safetensors")
    load_map.cache_clear()
    with pytest.raises(RecipeError, match=r"has the digest .*, and the recipe was made with"):
        check(whole(family, 5, part))


def test_a_file_without_a_map_is_refused(tmp_path: Path) -> None:
    save_file({"other": torch.eye(2)}, tmp_path / "f.safetensors")
    for file in (tmp_path / "f.safetensors", Path(__file__)):
        with pytest.raises(RecipeError, match="holds no map"):
            load_map(str(file), digest_of_bytes(file.read_bytes()))
