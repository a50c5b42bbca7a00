"""Tensors of a layer share merge weights by part, and a recipe's filters give each its own."""

from __future__ import annotations

import pytest

from gptailor_merge.tuning.groups import Groups, groups_of

NAMES = (
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.bias",
    "self_attn.q_proj.weight",
)


def test_a_layer_is_one_group() -> None:
    groups = groups_of(NAMES, "layer")
    assert len(groups) == 1
    assert groups.setting([0.25]) == 0.25


def test_the_mlp_and_the_norm_before_it_are_a_part() -> None:
    groups = groups_of(NAMES, "part")
    assert [name for name in NAMES if groups.of_tensor[name] == 0] == list(NAMES[1:4])
    assert groups.setting([0.5, 0.25]) == (("mlp.", 0.5), ("post_attention_layernorm.", 0.5), (None, 0.25))


def test_a_layer_without_two_parts_is_one_group() -> None:
    assert len(groups_of(("self_attn.q_proj.weight",), "part")) == 1


@pytest.mark.parametrize("names", [NAMES, ("a.weight", "b.a.weight", "weight"), ("a.b", "b", "a.b.c", "c")])
def test_each_tensor_takes_the_value_of_its_own_filter(names: tuple[str, ...]) -> None:
    """Though a tensor takes the first filter that is a part of its name."""
    groups: Groups = groups_of(names, "tensor")
    setting = groups.setting([float(number) for number in range(len(groups))])
    assert isinstance(setting, tuple)
    for name in names:
        taken = next(value for filtered, value in setting if filtered is None or filtered in name)
        assert taken == groups.of_tensor[name]
