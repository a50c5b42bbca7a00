"""What in a model's config depends on its depth, besides num_hidden_layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "no_rope_layers",
    "layers_block_type",
    "moe_layers",
    "full_attn_idxs",
    "indexer_types",
    "activation_sparsity_pattern",
    "layer_rope_theta",
    "mlp_only_layers",
    "first_k_dense_replace",
    "decoder_sparse_step",
    "num_kv_shared_layers",
    "num_nextn_predict_layers",
    "attn_layer_period",
)
"""Keys that say something of single layers; removing a layer makes them wrong."""

_INDICES = ("mlp_only_layers", "full_attn_idxs")
"""Those of them that are lists of layer indices."""


def per_layer_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config that would have to be adapted where layers are removed."""
    lists = [key for key in ("intermediate_size", "num_key_value_heads") if isinstance(config.get(key), list)]
    return [key for key in PER_LAYER if config.get(key)] + lists


def inconsistencies(config: Mapping[str, Any]) -> list[str]:
    """What a config.json says of single layers that does not fit its depth, one sentence each."""
    depth = config.get("num_hidden_layers")
    return [
        f"{key} has {len(config[key])} entries, num_hidden_layers is {depth}"
        for key in PER_LAYER
        if isinstance(config.get(key), list) and key not in _INDICES and len(config[key]) != depth
    ] + [
        f"{key} names layer {max(config[key])}, the last of {depth} layers is {depth - 1}"
        for key in _INDICES
        if isinstance(depth, int) and config.get(key) and max(config[key]) >= depth
    ]
