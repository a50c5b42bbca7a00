"""Tuning starts at the merge weights that make the layer as it is, or the most similar one."""

from __future__ import annotations

import torch

from gptailor_merge.tuning.groups import groups_of
from gptailor_merge.tuning.start import closest_weights

NAMES = ("self_attn.q_proj.weight", "mlp.up_proj.weight")


def layer(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(6, 5, generator=generator) for name in NAMES}


BASE, FIRST, SECOND = layer(0), layer(1), layer(2)
GROUPS = groups_of(NAMES, "part")


def merged(weights: dict[str, tuple[float, float]]) -> dict[str, torch.Tensor]:
    return {
        name: BASE[name] + w[0] * (FIRST[name] - BASE[name]) + w[1] * (SECOND[name] - BASE[name])
        for name, w in weights.items()
    }


def test_a_linear_merge_gives_its_weights_back() -> None:
    target = merged({NAMES[0]: (0.3, -0.2), NAMES[1]: (1.5, 0.25)})
    weights = closest_weights(target, BASE, [FIRST, SECOND], GROUPS)
    by_group = {GROUPS.of_tensor[name]: w for name, w in ((NAMES[0], [0.3, -0.2]), (NAMES[1], [1.5, 0.25]))}
    torch.testing.assert_close(weights, torch.tensor([by_group[0], by_group[1]]), atol=1e-5, rtol=1e-5)


def test_a_selected_layer_is_one_of_its_member() -> None:
    torch.testing.assert_close(closest_weights(BASE, BASE, [FIRST], GROUPS), torch.zeros(2, 1))
    torch.testing.assert_close(closest_weights(FIRST, BASE, [FIRST], GROUPS), torch.ones(2, 1))


def test_a_member_that_is_the_base_gets_nothing() -> None:
    weights = closest_weights(FIRST, BASE, [BASE, FIRST], GROUPS)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
