"""The two parts of a layer: attention, and the MLP with what belongs to it."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert|router")
"""Names of a layer's children that are its MLP, or a norm before or behind it."""


_NEXT_NORM = "post_attention_layernorm"
"""The norm before the MLP, where no norm bears the MLP's name; else one behind the attention."""


def mlp_filters(layers: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Filters that match all tensors of the MLP part and no others; none where layers have no MLP.

    Args:
        layers: of each layer the names of its tensors inside it, e.g. `mlp.up_proj.weight`.
    """
    children = {name.partition(".")[0] for layer in layers for name in layer}
    found = {child for child in children if _MLP.search(child)}
    if found and _NEXT_NORM in children and not any("norm" in child for child in found):
        found.add(_NEXT_NORM)
    return tuple(f"{child}." for child in sorted(found)) if found < children else ()
