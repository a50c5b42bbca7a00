"""Attention from one member, MLP from another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptailor_merge.models.family import Family
from gptailor_merge.models.parts import mlp_filters
from gptailor_merge.planning.writing import slices_of
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.space.slots import parts
from gptailor_merge.testing.three_models import assert_three_equal
from tests.conftest import MakeFamily
from tests.zoo import ZOO, write_family

LAYER = (
    "self_attn.q_proj.weight",
    "mlp.up_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)


@pytest.mark.parametrize(
    ("more", "filters"),
    [
        ((), ("mlp.", "post_attention_layernorm.")),
        # Here it is the norm behind the attention.
        (
            ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
            ("mlp.", "post_feedforward_layernorm.", "pre_feedforward_layernorm."),
        ),
    ],
)
def test_the_norms_of_the_mlp_belong_to_it(more: tuple[str, ...], filters: tuple[str, ...]) -> None:
    assert mlp_filters([(*LAYER, *more)]) == filters


def test_layers_without_an_mlp_have_no_parts() -> None:
    assert mlp_filters([("mixer.in_proj.weight", "norm.weight")]) == ()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_parts_are_those_of_their_members_to_the_bit(name: str, tmp_path: Path) -> None:
    """Every architecture: in memory == written == loaded, and each tensor equals its member's."""
    family = write_family(tmp_path / "family", name)
    read = Family.load(family["base"], {"math": family["math"], "code": family["code"]})
    filters = mlp_filters(read.base.architecture.layers)
    (mixed,) = slices_of([parts((family["math"], 1), (family["code"], 1), filters)], family["base"])
    others = [[0, 1], [2, 8]]
    kept = [
        {"sources": [{"model": family["base"], "layer_range": r}], "parameters": {"op": "select"}}
        for r in others
    ]
    document = {"merge_method": "tailor", "base_model": family["base"], "dtype": "float32"}
    recipe = Recipe.from_mapping(
        {
            **document,
            "out_dtype": "bfloat16",
            "slices": [kept[0], mixed.model_dump(exclude_defaults=True), kept[1]],
        }
    )
    composed = assert_three_equal(recipe, tmp_path / "out").state_dict()
    prefix = f"{read.base.architecture.prefix}1."
    layer = {n.removeprefix(prefix): t for n, t in composed.items() if n.startswith(prefix)}
    of = {member: assert_three_equal(alone(family[member]), tmp_path / member) for member in ("math", "code")}
    owners = set()
    for inner, tensor in layer.items():
        owner = "code" if any(f in inner for f in filters) else "math"
        owners.add(owner)
        assert same_bits(tensor, of[owner].state_dict()[prefix + inner]), inner
    assert owners == {"math", "code"}


def alone(model: str) -> Recipe:
    """The member as it is."""
    source = {"model": model, "layer_range": [0, 8]}
    return Recipe.from_mapping(
        {
            "merge_method": "tailor",
            "base_model": model,
            "slices": [{"sources": [source], "parameters": {"op": "select"}}],
        }
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parts_of_two_layers_in_every_dtype(
    stored: torch.dtype, make_family: MakeFamily, tmp_path: Path
) -> None:
    """The attention of layer 2 of one member, the MLP of layer 3 of another."""
    family = make_family(dtype=stored)
    mixed = parts((family["math"], 2), (family["code"], 3), ("mlp.", "post_attention_layernorm."))
    kept = {"sources": [{"model": family["base"], "layer_range": [0, 1]}], "parameters": {"op": "select"}}
    document = {"merge_method": "tailor", "base_model": family["base"], "dtype": "float32"}
    out_dtype = str(stored).removeprefix("torch.")
    recipe = Recipe.from_mapping({**document, "out_dtype": out_dtype, "slices": [kept, mixed]})
    composed = assert_three_equal(recipe, tmp_path / "out").state_dict()
    math, code = (load_file(Path(family[name]) / "model.safetensors") for name in ("math", "code"))
    name = "model.layers.{}.{}.weight"
    for inner in ("self_attn.q_proj", "self_attn.o_proj", "input_layernorm"):
        assert same_bits(composed[name.format(1, inner)], math[name.format(2, inner)])
    for inner in ("mlp.up_proj", "mlp.down_proj", "post_attention_layernorm"):
        assert same_bits(composed[name.format(1, inner)], code[name.format(3, inner)])
