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


def per_layer_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config that would have to be adapted where layers are removed."""
    lists = [key for key in ("intermediate_size", "num_key_value_heads") if isinstance(config.get(key), list)]
    return [key for key in PER_LAYER if config.get(key)] + lists
