"""What else in a model's config depends on its depth, and how it changes when layers are removed.

By rule, not by model type: the keys are those that transformers' configs use. Whether the changed
config describes the same layers is for architecture.py to verify.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

DEPTH = "num_hidden_layers"


_INDICES = re.compile(r"(_idxs|_indices|layer_ids|mlp_only_layers|moe_layers)$")
"""Names of lists of layer indices."""


_PER_LAYER = re.compile(r"layer|block_type|^indexer_types$|^activation_sparsity_pattern$")
"""Names of lists with an entry per layer."""


_PER_LAYER_IF_LIST = ("intermediate_size", "num_attention_heads", "num_key_value_heads")


_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""Numbers of layers at the start that differ from the others."""


_LAST = ("num_kv_shared_layers",)
"""Numbers of layers at the end that differ from the others."""


_BEYOND = ("num_nextn_predict_layers", "num_mtp_layers")
"""Numbers of layers behind the last, for predicting several tokens; no causal model runs them."""


PERIODS = {
    "sliding_window_pattern": ("layer_types", "full_attention"),
    "full_attention_interval": ("layer_types", "full_attention"),
    "global_attn_every_n_layers": ("layer_types", "full_attention"),
    "no_rope_layer_interval": ("no_rope_layers", 0),
}
"""Scalars that say with what period an entry stands in a list; read where the list is missing."""


def per_layer_lists(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists of a config that have an entry for each layer, by key."""
    depth = int(config[DEPTH])
    found = {}
    for key, value in config.items():
        if isinstance(value, (list, tuple)) and _is_per_layer(key) and len(value) >= depth:
            found[key] = list(value[:depth])
    return found


def changes(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """What to set in a config so that it describes the model of these layers.

    Args:
        config: with transformers' defaults filled in.
        kept: for each layer of the new model, in order, the layer of the config's model in its place.
    """
    depth = int(config[DEPTH])
    changed: dict[str, Any] = {DEPTH: len(kept)}
    for key, values in per_layer_lists(config).items():
        changed[key] = [values[layer] for layer in kept]
    for key, value in config.items():
        if _is_indices(key) and isinstance(value, (list, tuple)):
            changed[key] = [slot for slot, layer in enumerate(kept) if layer in value]
        elif key in _FIRST and isinstance(value, int) and value < depth:
            changed[key] = sum(layer < value for layer in kept)
        elif key in _LAST and isinstance(value, int):
            changed[key] = sum(layer >= depth - value for layer in kept)
        elif key in _BEYOND and value:
            changed[key] = 0
    for key, by_layer in _by_index(config).items():
        changed[key] = {slot: by_layer[layer] for slot, layer in enumerate(kept) if layer in by_layer}
    if config.get("decoder_sparse_step", 1) != 1 and "mlp_only_layers" in config:
        # Which layers are dense is computed from the index, and can be listed instead.
        step, dense = config["decoder_sparse_step"], config["mlp_only_layers"] or ()
        changed["decoder_sparse_step"] = 1
        changed["mlp_only_layers"] = [
            slot for slot, layer in enumerate(kept) if layer in dense or (layer + 1) % step
        ]
    for key, (listed, mark) in PERIODS.items():
        if isinstance(config.get(key), int) and listed in changed:
            changed[key] = _period(changed[listed], mark) or config[key]
    return changed


def inconsistencies(config: Mapping[str, Any]) -> list[str]:
    """Where the fields of a config contradict its depth, one sentence each."""
    depth = int(config[DEPTH])
    found = []
    for key, value in config.items():
        if not isinstance(value, (list, tuple)):
            continue
        if _is_indices(key):
            beyond = [layer for layer in value if not 0 <= layer < depth]
            if beyond:
                found.append(f"{key} names layer {beyond[0]}, the model has {depth} layers")
        elif _is_per_layer(key) and len(value) != depth and (key != "no_rope_layers" or len(value) < depth):
            # SmolLM3 allows no_rope_layers to be longer than the model is deep.
            found.append(f"{key} has {len(value)} entries, the model has {depth} layers")
    for key, by_layer in _by_index(config).items():
        if max(by_layer, default=0) >= depth:
            found.append(f"{key} names layer {max(by_layer)}, the model has {depth} layers")
    for key in (*_FIRST, *_LAST):
        value = config.get(key)
        # max_window_layers is 28 by default, whatever the depth.
        if isinstance(value, int) and value > depth and key != "max_window_layers":
            found.append(f"{key} is {value}, the model has {depth} layers")
    return found


def choose(
    kinds: Sequence[Hashable], pattern: Sequence[Hashable], costs: Sequence[float], needed: Collection[int]
) -> list[int] | None:
    """The cheapest layers that give a pattern of kinds, in ascending order.

    Args:
        kinds: of each layer of a model.
        pattern: the kind that each slot must have.
        costs: of keeping each layer.
        needed: layers that must be kept.

    Returns:
        One layer per slot, or None where there is no such choice.
    """

    def cost(slot: int, layer: int) -> float | None:
        return costs[layer] if kinds[layer] == pattern[slot] else None

    return assign(len(pattern), len(kinds), cost, needed)


def assign(
    slots: int, layers: int, cost: Callable[[int, int], float | None], needed: Collection[int]
) -> list[int] | None:
    """The cheapest ascending layers for a number of slots.

    Args:
        cost: (slot, layer) -> what that layer costs there, or None where it does not fit.
        needed: layers that must be taken.

    Returns:
        One layer per slot, or None where there is no such choice.
    """
    # best[s]: (cost, layers) of the first s slots, filled from the layers seen so far.
    best: list[tuple[float, tuple[int, ...]] | None] = [None] * (slots + 1)
    best[0] = (0.0, ())
    for layer in range(layers):
        after = [None if layer in needed else so_far for so_far in best]
        for slot in range(slots):
            so_far, price = best[slot], cost(slot, layer)
            if price is not None and so_far is not None:
                taken = (so_far[0] + price, (*so_far[1], layer))
                other = after[slot + 1]
                if other is None or taken < other:
                    after[slot + 1] = taken
        best = after
    return list(best[-1][1]) if best[-1] is not None else None


def _by_index(config: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """The mappings of a config from some layers' indices to what they have of their own."""
    return {
        key: {int(index): own for index, own in value.items()}
        for key, value in config.items()
        if isinstance(value, Mapping) and "layer" in key and all(str(index).isdigit() for index in value)
    }


def _is_indices(key: str) -> bool:
    return _INDICES.search(key) is not None


def _is_per_layer(key: str) -> bool:
    return not _is_indices(key) and (_PER_LAYER.search(key) is not None or key in _PER_LAYER_IF_LIST)


def _period(values: Sequence[Any], mark: Any) -> int | None:
    """p where the mark stands at every p-th place and nowhere else, if there is one."""
    period = values.index(mark) + 1 if mark in values else len(values) + 1
    regular = all((value == mark) == ((place + 1) % period == 0) for place, value in enumerate(values))
    return period if regular else None
