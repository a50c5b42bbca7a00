from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.models.depth import changes, choose, inconsistencies

CONFIG = {"num_hidden_layers": 6, "hidden_size": 16, "eos_token_id": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"layer_types": list("aabbab")}, {"layer_types": list("abba")}),
        ({"no_rope_layers": [1, 1, 1, 0, 1, 1, 0, 0]}, {"no_rope_layers": [1, 1, 0, 1]}),
        ({"intermediate_size": [1, 2, 3, 4, 5, 6]}, {"intermediate_size": [1, 3, 4, 5]}),
        ({"intermediate_size": 24}, {}),
        ({"mlp_only_layers": [0, 1, 4]}, {"mlp_only_layers": [0, 3]}),
        ({"full_attn_idxs": [0, 1, 2, 3, 4, 5]}, {"full_attn_idxs": [0, 1, 2, 3]}),
        ({"first_k_dense_replace": 2}, {"first_k_dense_replace": 1}),
        ({"max_window_layers": 28}, {}),
        ({"max_window_layers": 3}, {"max_window_layers": 2}),
        ({"num_kv_shared_layers": 3}, {"num_kv_shared_layers": 2}),
        ({"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 0}),
        (
            {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
            {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 2, 3]},
        ),
        ({"per_layer_config": {"02": "x", "5": "y"}}, {"per_layer_config": {1: "x"}}),
    ],
    ids=lambda value: next(iter(value), "unchanged"),
)
def test_what_depends_on_depth(said: dict[str, object], expected: dict[str, object]) -> None:
    assert changes({**CONFIG, **said}, [0, 2, 3, 4]) == {"num_hidden_layers": 4, **expected}


def test_a_period_is_told_where_one_fits() -> None:
    config = {**CONFIG, "sliding_window_pattern": 3, "layer_types": ["s", "s", "full_attention"] * 2}
    assert changes(config, [0, 2, 3, 5])["sliding_window_pattern"] == 2
    assert changes(config, [0, 1, 3, 4])["sliding_window_pattern"] == 5
    assert changes(config, [0, 2, 3, 4])["sliding_window_pattern"] == 3  # none fits


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"layer_types": ["a"] * 6, "no_rope_layers": [1] * 8, "mlp_only_layers": [5]}, []),
        ({"layer_types": ["a"] * 5}, ["layer_types has 5 entries, the model has 6 layers"]),
        ({"mlp_only_layers": [2, 6]}, ["mlp_only_layers names layer 6, the model has 6 layers"]),
        ({"first_k_dense_replace": 7}, ["first_k_dense_replace is 7, the model has 6 layers"]),
        ({"per_layer_config": {"06": {}}}, ["per_layer_config names layer 6, the model has 6 layers"]),
    ],
)
def test_contradictions_are_told(said: dict[str, object], expected: list[str]) -> None:
    assert inconsistencies({**CONFIG, **said}) == expected


@given(
    kinds=st.lists(st.sampled_from("ab"), min_size=1, max_size=7),
    pattern=st.lists(st.sampled_from("ab"), min_size=1, max_size=5),
    costs=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    needed=st.sets(st.integers(0, 6), max_size=2),
)
def test_the_cheapest_choice_is_found(
    kinds: list[str], pattern: list[str], costs: list[int], needed: set[int]
) -> None:
    """Against trying all."""
    needed &= set(range(len(kinds)))
    possible = [
        chosen
        for chosen in combinations(range(len(kinds)), len(pattern))
        if [kinds[layer] for layer in chosen] == pattern and needed <= set(chosen)
    ]
    chosen = choose(kinds, pattern, [float(cost) for cost in costs], needed)
    if not possible:
        assert chosen is None
    else:
        assert chosen is not None
        assert tuple(chosen) in possible
        assert sum(costs[i] for i in chosen) == min(sum(costs[i] for i in some) for some in possible)


def test_a_list_whose_default_is_not_as_long_as_the_depth_is_no_list_per_layer() -> None:
    """Names do not tell; the defaults of the model type do."""
    recurrent = {"model_type": "recurrent_gemma", "num_hidden_layers": 8, "block_types": ["r", "r", "a"]}
    assert inconsistencies(recurrent) == []
    assert changes(recurrent, [0, 2, 5, 7])["block_types"] == ["r", "a", "a", "r"]
    crossed = {"model_type": "mllama_text_model", "num_hidden_layers": 8, "cross_attention_layers": [3, 6]}
    assert inconsistencies(crossed) == []
    assert changes(crossed, [0, 3, 7])["cross_attention_layers"] == [1]
    assert inconsistencies({**crossed, "cross_attention_layers": [9]}) == [
        "cross_attention_layers names layer 9, the model has 8 layers"
    ]
    backbone = {"model_type": "dinov2", "num_hidden_layers": 12, "out_indices": [12]}
    assert inconsistencies(backbone) == []
