"""Merges of a space: the members that take part, the base among them, and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptailor_merge.methods.specs import BasePolicy, MethodSpec, method_names, method_spec
from gptailor_merge.recipe.plan import SELECT, Operation, Settings
from gptailor_merge.space.points import WEIGHTS, Array, scale, unscale

TASK_VECTOR_WEIGHT = 0.4
"""The usual weight of each task vector."""

SEARCHABLE = {"weight", "t"}
"""The required parameters that the space can give a value."""


@dataclass(frozen=True)
class MemberMerge:
    """A merge of some members of a family.

    Attributes:
        method: a mergekit method.
        members: indices into the family, ascending; the family's base is 0.
        base: the member that is the method's base, if there is one.
        weights: member -> weight, for the members that take one.
        t: the interpolation between two members, where the method has it.
    """

    method: str
    members: tuple[int, ...]
    base: int | None
    weights: Mapping[int, float]
    t: float | None

    @property
    def operation(self) -> Operation:
        """The plan's operation on the members' layers, in the order of `members`."""
        inputs = [(("weight", self.weights[m]),) if m in self.weights else () for m in self.members]
        shared = () if self.t is None else (("t", self.t),)
        position = None if self.base is None else self.members.index(self.base)
        return Operation(self.method, tuple(inputs), shared, position)


def problem(name: str, family: int) -> str | None:
    """Tells why a family cannot be searched with a method; None where it can.

    Args:
        family: the number of its members.
    """
    spec = method_spec(name)
    if spec is None or name == SELECT:
        known = ", ".join(n for n in method_names() if n != SELECT)
        return f"unknown method, found {name!r}; known are {known}"
    needed = {p.name for p in spec.parameters if p.required} - SEARCHABLE
    if needed:
        return f"{name} needs {', '.join(sorted(needed))}, which the search cannot choose"
    fewest, available = _fewest(spec), family - _spares_base(spec)
    if fewest > available:
        without = " besides its base" if _spares_base(spec) else ""
        return f"{name} merges {fewest} models or more, the family has {available}{without}"
    return None


def merge(method: str, share: Array, weight: Array) -> MemberMerge:
    """Returns the merge that the entries of a point stand for; every point has one.

    Args:
        share: an entry for each member; those above 1/2 take part, or the highest.
        weight: an entry for each member; the base's is slerp's t.
    """
    spec = method_spec(method)
    assert spec is not None
    members, base = _members(spec, share)
    required = {p.name for p in spec.parameters if p.required}
    weighted = [member for member in members if member != base] if "weight" in required else []
    return MemberMerge(
        method=method,
        members=tuple(members),
        base=base,
        weights={member: scale(weight[member]) for member in weighted},
        t=scale(weight[0]) if "t" in required else None,
    )


def whole_family(method: str, members: int) -> list[MemberMerge]:
    """Returns the usual merges of a whole family by a method; none where it takes only some members.

    They are the plain average, and where task vectors are added, 0.4 of each (G. Ilharco et al., Editing
    models with task arithmetic, arXiv 2212.04089).

    Args:
        members: the number of members.
    """
    spec = method_spec(method)
    assert spec is not None
    adds_task_vectors = spec.base is BasePolicy.REQUIRED
    weights = (scale(unscale(1 / members)), *((TASK_VECTOR_WEIGHT,) if adds_task_vectors else ()))
    everybody = np.full(members, 0.75)
    merges = [merge(method, everybody, np.full(members, unscale(weight))) for weight in weights]
    distinct = [m for i, m in enumerate(merges) if m not in merges[:i]]
    return [m for m in distinct if len(m.members) >= max(2, members - _spares_base(spec))]


def set_merge(members: Iterable[int], operation: Operation, share: Array, weight: Array) -> None:
    """Sets the entries of a point to those of a merge.

    Args:
        members: in the order of the operation's inputs.

    Raises:
        ConfigError: weights that differ by tensor.
    """
    members = list(members)
    for member in range(len(share)):
        share[member] = 0.75 if member in members else 0.25
    for member, settings in zip(members, operation.inputs, strict=True):
        weight[member] = unscale(dict(settings).get("weight", WEIGHTS[0]))
    shared = dict(operation.shared)
    if "t" in shared:
        weight[0] = unscale(shared["t"])


def change(share: Array, weight: Array, rng: np.random.RandomState) -> None:
    """Changes a merge's weights a little, and at times one of its members."""
    member = rng.randint(len(share))
    if rng.uniform() < 0.3:
        share[member] = 1 - share[member]
    weight[:] = np.clip(weight + rng.normal(scale=0.15, size=len(weight)), 0, 1)


def change_member(
    shares: Array, weights: Array, layers: Sequence[int], member: int, rng: np.random.RandomState
) -> None:
    """Changes a member's weight in several layers by the same amount, and has it take part in them."""
    shares[layers, member] = 0.75
    weights[layers, member] = np.clip(weights[layers, member] + rng.normal(scale=0.15), 0, 1)


def begin(method: str, share: Array, weight: Array, rng: np.random.RandomState) -> None:
    """Sets the entries of a layer that is merged from now on: the family's usual merge, or random ones."""
    merges = whole_family(method, len(share))
    if merges:
        chosen = merges[rng.randint(len(merges))]
        set_merge(chosen.members, chosen.operation, share, weight)
    else:
        share[:], weight[:] = rng.uniform(size=len(share)), rng.uniform(size=len(weight))


def shape(sources: Sequence[Any], operation: Operation) -> list[Any]:
    """Returns what two merges share that differ only in searched values and in the order of their sources."""
    base = None if operation.base is None else sources[operation.base]
    settings = map(_without_values, operation.inputs)
    ordered: list[Any] = sorted(zip(sources, settings, strict=True))
    return [operation.method, base, ordered, _without_values(operation.shared)]


def _without_values(settings: Settings) -> Settings:
    return tuple(
        (name, 0.0 if name in SEARCHABLE and not isinstance(value, tuple) else value)
        for name, value in settings
    )


def _members(spec: MethodSpec, share: Array) -> tuple[list[int], int | None]:
    """Returns the members that take part, ascending, and the one that is the base."""
    order = sorted(range(len(share)), key=lambda member: (-share[member], member))
    at_most = spec.most or spec.most_besides_base or len(order)
    if spec.base is BasePolicy.REQUIRED and at_most > 2:
        fewest = _fewest(spec) - 1
        others = [member for member in order if member != 0]
        chosen = [member for member in others if share[member] > 0.5]
        return [0, *sorted(chosen if len(chosen) >= fewest else others[:fewest])], 0
    if _spares_base(spec):
        order.remove(0)
    chosen = [member for member in order if share[member] > 0.5]
    fewest = _fewest(spec)
    chosen = sorted((chosen if len(chosen) >= fewest else order[:fewest])[:at_most])
    return chosen, chosen[0] if spec.base is BasePolicy.REQUIRED else None


def _fewest(spec: MethodSpec) -> int:
    """Returns the fewest models that a merge takes, the base included; never fewer than two."""
    return max(2, spec.fewest, spec.fewest_besides_base or 0)


def _spares_base(spec: MethodSpec) -> bool:
    """Tells whether the space leaves the family's base out: a method that may go without a base does."""
    return spec.base is BasePolicy.OPTIONAL
