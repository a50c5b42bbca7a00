"""Changes the entries of a model's config that depend on its depth when layers are removed.

The rules go by the keys that transformers' configs use, not by model type. architecture.py verifies that
the changed config describes the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any

from transformers import CONFIG_MAPPING

DEPTH = "num_hidden_layers"


_INDICES = re.compile(r"(_idxs|_indices|layer_ids|mlp_only_layers|moe_layers)$")
"""Names of lists of layer indices."""


_PER_LAYER = re.compile(r"layer|block_type|^indexer_types$|^activation_sparsity_pattern$")
"""Names of lists that have an entry for each layer."""


_PER_LAYER_IF_LIST = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
"""Names of numbers that are lists with an entry for each layer in some models."""


_FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""Numbers of layers at the start that differ from the others."""


_LAST = ("num_kv_shared_layers",)
"""Numbers of layers at the end that differ from the others."""


_BEYOND = ("num_nextn_predict_layers", "num_mtp_layers")
"""Numbers of layers after the last, which predict several tokens; no causal model runs them."""


PERIODS = {
    "sliding_window_pattern": ("layer_types", "full_attention"),
    "full_attention_interval": ("layer_types", "full_attention"),
    "global_attn_every_n_layers": ("layer_types", "full_attention"),
    "no_rope_layer_interval": ("no_rope_layers", 0),
}
"""Key of a period -> (list, entry) that has the period; models read it if the list is absent."""


class _Role(Enum):
    """Says how a list in a config depends on the layers."""

    PER_LAYER = "an entry for each layer"
    INDICES = "the indices of some layers"
    PERIOD = "entries that the layers take in turn, again and again"


def per_layer_lists(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the lists of a config that have an entry for each layer, by key.

    >>> per_layer_lists({"num_hidden_layers": 2, "layer_types": ["full", "sliding"], "vocab_size": 9})
    {'layer_types': ['full', 'sliding']}
    """
    depth = int(config[DEPTH])
    return {
        key: list(value[:depth])
        for key, value in config.items()
        if _role(config, key) is _Role.PER_LAYER and len(value) >= depth
    }


def changes(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Returns the entries to set in a config so that it describes the pruned model.

    Args:
        config: a config with transformers' defaults filled in.
        kept: the layer of the config's model in each slot of the pruned one.

    >>> changes({"num_hidden_layers": 3, "layer_types": ["full", "sliding", "full"]}, [0, 2])
    {'num_hidden_layers': 2, 'layer_types': ['full', 'full']}
    """
    depth = int(config[DEPTH])
    changed: dict[str, Any] = {DEPTH: len(kept)}
    for key, values in per_layer_lists(config).items():
        changed[key] = [values[layer] for layer in kept]
    for key, value in config.items():
        role = _role(config, key)
        if role is _Role.INDICES:
            changed[key] = [slot for slot, layer in enumerate(kept) if layer in value]
        elif role is _Role.PERIOD and value:
            changed[key] = [value[layer % len(value)] for layer in kept]
        elif key in _FIRST and isinstance(value, int) and value < depth:
            changed[key] = sum(layer < value for layer in kept)
        elif key in _LAST and isinstance(value, int):
            changed[key] = sum(layer >= depth - value for layer in kept)
        elif key in _BEYOND and value:
            changed[key] = 0
    for key, by_layer in _by_index(config).items():
        changed[key] = {slot: by_layer[layer] for slot, layer in enumerate(kept) if layer in by_layer}
    if config.get("decoder_sparse_step", 1) != 1 and "mlp_only_layers" in config:
        # The model computes from the index which layers are dense; they can be listed instead.
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
    """Returns sentences about entries of a config that contradict its depth; none if it has no depth."""
    depth = config.get(DEPTH)
    if not isinstance(depth, int):
        return []
    texts = []
    for key, value in config.items():
        role = _role(config, key)
        if role is _Role.INDICES:
            beyond = [layer for layer in value if not (isinstance(layer, int) and 0 <= layer < depth)]
            if beyond:
                texts.append(f"{key} names layer {beyond[0]}, the model has {depth} layers")
        elif role is _Role.PER_LAYER and (
            # SmolLM3 allows no_rope_layers to have more entries than the model has layers.
            len(value) < depth or (len(value) > depth and key != "no_rope_layers")
        ):
            texts.append(f"{key} has {len(value)} entries, the model has {depth} layers")
    for key, by_layer in _by_index(config).items():
        if max(by_layer, default=0) >= depth:
            texts.append(f"{key} names layer {max(by_layer)}, the model has {depth} layers")
    for key in (*_FIRST, *_LAST):
        value = config.get(key)
        # max_window_layers is 28 by default, whatever the depth.
        if isinstance(value, int) and value > depth and key != "max_window_layers":
            texts.append(f"{key} is {value}, the model has {depth} layers")
    return texts


def choose(
    kinds: Sequence[Hashable], pattern: Sequence[Hashable], costs: Sequence[float], needed: Collection[int]
) -> list[int] | None:
    """Returns the cheapest layers, in ascending order, that have a pattern of kinds.

    Args:
        kinds: the kind of each layer of a model.
        pattern: the kind that each slot must have.
        costs: the cost of keeping each layer.
        needed: layers that must be kept.

    Returns:
        One layer per slot, or None if there is no such choice.

    >>> choose("aabb", "ab", [1.0, 0.0, 0.0, 1.0], ())
    [1, 2]
    """

    def cost(slot: int, layer: int) -> float | None:
        return costs[layer] if kinds[layer] == pattern[slot] else None

    return assign(len(pattern), len(kinds), cost, needed)


def assign(
    slots: int, layers: int, cost: Callable[[int, int], float | None], needed: Collection[int]
) -> list[int] | None:
    """Returns the cheapest layers, in ascending order, for a number of slots, by dynamic programming.

    Args:
        cost: (slot, layer) -> the layer's cost in that slot, or None if it does not fit there.
        needed: layers that must be taken.

    Returns:
        One layer per slot, or None if there is no such choice.
    """
    # best[s]: (cost, layers) of the first s slots, filled from the layers before the current one.
    best: list[tuple[float, tuple[int, ...]] | None] = [None] * (slots + 1)
    best[0] = (0.0, ())
    for layer in range(layers):
        after = [None if layer in needed else choice for choice in best]
        for slot in range(slots):
            choice, price = best[slot], cost(slot, layer)
            if price is not None and choice is not None:
                extended = (choice[0] + price, (*choice[1], layer))
                rival = after[slot + 1]
                if rival is None or extended < rival:
                    after[slot + 1] = extended
        best = after
    return list(best[-1][1]) if best[-1] is not None else None


def _by_index(config: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """Returns the mappings of a config from layer indices to entries of single layers, by key."""
    return {
        key: {int(index): entry for index, entry in value.items()}
        for key, value in config.items()
        if isinstance(value, Mapping) and "layer" in key and all(str(index).isdigit() for index in value)
    }


def _role(config: Mapping[str, Any], key: str) -> _Role | None:
    """Returns the role of an entry; None if it is no list, or has nothing to do with the layers.

    Names alone do not tell an entry for each layer from `cross_attention_layers`, which are indices, or
    `block_types`, which is a period. The default of the same model type does: its length is not its depth.
    """
    if not isinstance(config[key], (list, tuple)):
        return None
    is_indices = _INDICES.search(key) is not None
    if not is_indices and not _PER_LAYER.search(key) and key not in _PER_LAYER_IF_LIST:
        return None
    defaults = _defaults(str(config.get("model_type")))
    entries, depth = defaults.get(key), defaults.get(DEPTH)
    if is_indices:
        # Vision backbones count the embeddings in `out_indices`.
        beyond = isinstance(entries, (list, tuple)) and depth is not None and max(entries, default=0) >= depth
        return None if beyond else _Role.INDICES
    if not entries or not isinstance(entries, (list, tuple)) or len(entries) == depth:
        return _Role.PER_LAYER
    return _Role.INDICES if all(type(entry) is int for entry in entries) else _Role.PERIOD


@lru_cache(maxsize=256)
def _defaults(model_type: str) -> Mapping[str, Any]:
    """Returns the entries that a config of a model type has if nothing is said; none for unknown types."""
    try:
        return dict(CONFIG_MAPPING[model_type]().to_dict())
    except Exception:  # some need arguments, and a config's code may raise anything
        return {}


def _period(values: Sequence[Any], mark: Any) -> int | None:
    """Returns p if the mark stands at every p-th place and nowhere else, or None."""
    period = values.index(mark) + 1 if mark in values else len(values) + 1
    regular = all((value == mark) == ((place + 1) % period == 0) for place, value in enumerate(values))
    return period if regular else None
