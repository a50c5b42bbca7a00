"""The two parts of a layer: attention, and the MLP with what belongs to it."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert|router")
"""Matches the children of a layer that are its MLP, or a norm before or after the MLP."""


_NEXT_NORM = "post_attention_layernorm"
"""The norm before the MLP if no norm has the MLP in its name; else a norm after the attention."""


def mlp_filters(layers: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Returns filters that match the tensors of the MLP part and no others; layers without an MLP have none.

    Args:
        layers: the names of each layer's tensors inside it.

    >>> mlp_filters([["self_attn.q_proj.weight", "post_attention_layernorm.weight", "mlp.up_proj.weight"]])
    ('mlp.', 'post_attention_layernorm.')
    """
    children = {name.partition(".")[0] for layer in layers for name in layer}
    mlp = {child for child in children if _MLP.search(child)}
    if mlp and _NEXT_NORM in children and not any("norm" in child for child in mlp):
        mlp.add(_NEXT_NORM)
    return tuple(f"{child}." for child in sorted(mlp)) if mlp < children else ()
