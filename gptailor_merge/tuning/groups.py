"""Groups the tensors of a layer that share merge weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from gptailor_merge.models.parts import mlp_filters
from gptailor_merge.recipe.plan import Filtered

Sharing = Literal["layer", "part", "tensor"]
"""The tensors that share a merge weight: all of a layer, those of its attention or its MLP, or none."""


SHARINGS: tuple[str, ...] = get_args(Sharing)


@dataclass(frozen=True)
class Groups:
    """Tensors of a layer in groups; a group is named by the filters that select it in a recipe.

    Attributes:
        filters: of each group; a group without filters takes what the others leave.
        of_tensor: name inside the layer -> position of its group.
    """

    filters: tuple[tuple[str, ...], ...]
    of_tensor: dict[str, int]

    def __len__(self) -> int:
        return len(self.filters)

    def setting(self, values: Sequence[float]) -> float | Filtered:
        """Returns the setting of a recipe that gives each group its value."""
        if len(self.filters) == 1:
            return values[0]
        pairs = [(f, v) for filters, v in zip(self.filters, values, strict=True) for f in filters]
        rest = [(None, v) for filters, v in zip(self.filters, values, strict=True) if not filters]
        return (*pairs, *rest)


def groups_of(names: Iterable[str], sharing: Sharing) -> Groups:
    """Divides the tensors of a layer.

    Args:
        names: the tensors' names inside the layer.

    >>> groups_of(["self_attn.q_proj.weight", "mlp.up_proj.weight"], "part").filters
    (('mlp.',), ())
    """
    whole = list(names)
    mlp = mlp_filters([whole]) if sharing == "part" else ()
    if sharing == "tensor":
        # A tensor takes the first filter that is a part of its name, so that longer names come first.
        # The last needs no filter, and a recipe demands a value for tensors that no filter matches.
        ordered = sorted(whole, key=lambda name: (-len(name), name))
        filters = (*((name,) for name in ordered[:-1]), ())
        return Groups(filters, {name: i for i, name in enumerate(ordered)})
    if not mlp:
        return Groups(((),), dict.fromkeys(whole, 0))
    return Groups((mlp, ()), {name: 0 if any(f in name for f in mlp) else 1 for name in whole})
