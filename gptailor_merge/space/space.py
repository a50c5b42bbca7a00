"""Recipes <-> points of arrays. Every point decodes to a valid recipe of a target size.

A point is these arrays, with entries in [0, 1]:

    size     [1]                 how many layers stay, where that is open
    removal  [layers]            the layers with the highest keys are removed, exactly as many as needed
    kind     [layers]            which member is selected, which method merges, or that parts are mixed
    share    [layers, members]   which members a merge takes: those above 1/2, or the highest
    weight   [layers, members]   with what weight; slerp's t is the base's entry
    shift    [layers, members]   whether a neighbour of the member's layer is taken instead
    part     [layers, 2]         the members whose attention and whose MLP are mixed

and those of outer.py; the last two and these only where the space has what they say. Removed layers
keep their other entries, so that a layer that comes back is as it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.models.depth import assign, choose
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import SELECT, Plan, Slot
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.recipe.removals import with_removals
from gptailor_merge.space import merging, moves, slots
from gptailor_merge.space.outer import Outer
from gptailor_merge.space.points import Point, at_offset, index, middle, offset

_ELSEWHERE = "the recipe uses layers, methods or parameters that this space does not have"


@dataclass(frozen=True)
class Space:
    """All recipes of one size, or of several, over one family.

    Attributes:
        models: the members as recipes name them, the base first.
        depth: layers of every member.
        sizes: how many layers the pruned model may have, ascending.
        removable: indices of the layers that may be removed.
        methods: mergekit methods that may merge a layer.
        layer_kinds: of each layer its kind, and
        patterns: of each size the kinds that the pruned model's slots must have, see
            recipe.architecture.pattern; sizes in which layers of any kinds may follow each other
            are not there.
        outer: what embeddings and head may be; None where they are the base's.
        neighbours: how far from its own layer a slot may take one; slots of layers that must not be
            removed take their own.
        parts: filters of the MLP's tensors, where attention and MLP may come from two members.
    """

    models: tuple[str, ...]
    depth: int
    sizes: tuple[int, ...]
    removable: tuple[int, ...]
    methods: tuple[str, ...]
    dtype: str | None = None
    out_dtype: str | None = None
    layer_kinds: tuple[Hashable, ...] = ()
    patterns: Mapping[int, tuple[Hashable, ...]] = field(default_factory=dict)
    outer: Outer | None = None
    neighbours: int = 0
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        texts = dict.fromkeys(filter(None, map(self._size_problem, self.sizes)))
        problems = [Problem(("target",), text) for text in texts]
        for layer in self.removable:
            if not 0 <= layer < self.depth:
                message = f"layer out of range, found {layer} of {self.depth} layers"
                problems.append(Problem(("operations", "removable"), message))
        for place, name in enumerate(self.methods):
            text = merging.problem(name, len(self.models))
            if text:
                problems.append(Problem(("operations", "merge", place), text))
        if self.parts and len(self.models) < 2:
            problems.append(Problem(("operations", "parts"), "a family of one model has no parts to mix"))
        if problems:
            raise ConfigError(problems)

    def _size_problem(self, size: int) -> str | None:
        removed = self.depth - size
        if not 1 <= size < self.depth:
            return f"expected 1 to {self.depth - 1} layers to keep of {self.depth}, found {size}"
        if removed > len(self.removable):
            return (
                f"{removed} layers would have to go, and only {len(self.removable)} may "
                "(operations.protect, operations.removable)"
            )
        if size in self.patterns and self._cheapest([0.0] * self.depth, size) is None:
            return (
                f"no {size} layers keep the pattern of layers that this architecture computes from "
                "their index (operations.protect and operations.removable narrow the choice)"
            )
        return None

    @property
    def kinds(self) -> int:
        """Number of things that can happen to a kept layer."""
        return len(self.models) + len(self.methods) + bool(self.parts)

    @property
    def parts_kind(self) -> int | None:
        """The last of the kinds, where parts may be mixed."""
        return self.kinds - 1 if self.parts else None

    def random(self, rng: np.random.RandomState) -> Point:
        """A uniformly random point."""
        shapes = self.shapes()
        return {name: rng.uniform(size=shape) for name, shape in shapes.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays of a point."""
        grid = (self.depth, len(self.models))
        shapes: dict[str, tuple[int, ...]] = {"size": (1,)} if len(self.sizes) > 1 else {}
        shapes |= {"removal": (self.depth,), "kind": (self.depth,), "share": grid, "weight": grid}
        shapes |= {"shift": grid} if self.neighbours else {}
        shapes |= {"part": (self.depth, 2)} if self.parts else {}
        return shapes | (self.outer.shapes() if self.outer is not None else {})

    def size(self, point: Point) -> int:
        """How many layers a point keeps."""
        return self.sizes[index(point["size"][0], len(self.sizes)) if "size" in point else 0]

    def kept_layers(self, point: Point) -> list[int]:
        """The source layers that a point keeps, ascending."""
        return self.keep(point["removal"].tolist(), self.size(point))

    def keep(self, keys: Sequence[float], size: int) -> list[int]:
        """The layers that stay when those with the highest keys are removed, ascending.

        Where the slots' kinds are fixed, the choice with the lowest sum of keys that has them.
        """
        if size not in self.patterns:
            order = sorted(self.removable, key=lambda layer: (-keys[layer], layer))
            return sorted(set(range(self.depth)) - set(order[: self.depth - size]))
        chosen = self._cheapest(keys, size)
        assert chosen is not None  # __post_init__ has looked
        return chosen

    def _cheapest(self, keys: Sequence[float], size: int) -> list[int] | None:
        protected = set(range(self.depth)) - set(self.removable)
        return choose(self.layer_kinds, self.patterns[size], keys, protected)

    def layers_for(self, layer: int) -> list[int]:
        """The layers that the slot of a layer may take: its own and neighbours of its kind."""
        if not self.neighbours or layer not in self.removable:
            return [layer]
        near = range(max(0, layer - self.neighbours), min(self.depth, layer + self.neighbours + 1))
        return [other for other in near if self._alike(layer, other)]

    def source_layer(self, point: Point, layer: int, member: int) -> int:
        """The layer of a member that the slot of a layer takes."""
        if not self.neighbours:
            return layer
        other = layer + offset(point["shift"][layer, member], self.neighbours)
        return other if other in self.layers_for(layer) else layer

    def _alike(self, layer: int, other: int) -> bool:
        return not self.layer_kinds or self.layer_kinds[layer] == self.layer_kinds[other]

    def members(self, point: Point, layer: int) -> tuple[int, ...]:
        """The members that a kept layer's slot takes layers of."""
        kind = index(point["kind"][layer], self.kinds)
        if kind < len(self.models):
            return (kind,)
        if kind == self.parts_kind:
            return self._part_members(point, layer)
        return self._merge(point, layer, self.methods[kind - len(self.models)]).members

    def decode(self, point: Point) -> Recipe:
        """The recipe of a point; total."""
        filled = slots.joined(self._slot(point, layer) for layer in self.kept_layers(point))
        document = {
            "merge_method": "tailor",
            "base_model": self.models[0],
            "slices": with_removals(filled, self.models[0], self.depth),
            "parameters": self.outer.decode(point) if self.outer is not None else {},
        }
        dtypes = {"dtype": self.dtype, "out_dtype": self.out_dtype}
        return Recipe.from_mapping(document | {k: v for k, v in dtypes.items() if v is not None})

    def select(self, member: int, removed: set[int]) -> Recipe:
        """One member without some layers; not in this space where their number is another."""
        point = {name: np.full(shape, 0.5) for name, shape in self.shapes().items() if name != "size"}
        point["kind"][:] = middle(member, self.kinds)
        point["removal"][:] = 0.0
        point["removal"][sorted(removed)] = 1.0
        if self.outer is not None:
            self.outer.select(point, self.models[member])
        others = tuple(sorted(set(self.removable) | removed))
        left = self.depth - len(removed)
        return replace(self, sizes=(left,), removable=others, patterns={}).decode(point)

    def _slot(self, point: Point, layer: int) -> slots.Made:
        """The slice of one kept layer."""
        kind = index(point["kind"][layer], self.kinds)

        def place(member: int) -> tuple[str, int]:
            return self.models[member], self.source_layer(point, layer, member)

        if kind == self.parts_kind:
            attention, mlp = self._part_members(point, layer)
            if attention != mlp:
                return slots.parts(place(attention), place(mlp), self.parts)
            kind = attention
        if kind < len(self.models):
            return slots.select(*place(kind))
        method = self.methods[kind - len(self.models)]
        merge = self._merge(point, layer, method)
        sources = [
            slots.source(*place(m), {"weight": merge.weights[m]} if m in merge.weights else None)
            for m in merge.members
        ]
        shared = {} if merge.t is None else {"t": merge.t}
        made = {"sources": sources, "parameters": {"op": "merge", "method": method, **shared}}
        return {**made, "base_model": self.models[merge.base]} if merge.base else made

    def _merge(self, point: Point, layer: int, method: str) -> merging.Merge:
        return merging.merge(method, point["share"][layer], point["weight"][layer])

    def _part_members(self, point: Point, layer: int) -> tuple[int, int]:
        attention, mlp = (index(entry, len(self.models)) for entry in point["part"][layer])
        return attention, mlp

    def encode(
        self, recipe: Recipe, rng: np.random.RandomState | None = None, *, nearest: bool = False
    ) -> Point:
        """A point that decodes to this recipe.

        Args:
            rng: draws the entries that the recipe leaves open; default 1/2 everywhere.
            nearest: weights may come back rounded to what the space has.

        Raises:
            ConfigError: the recipe is not in this space.
        """
        resolved = plan(recipe)
        shapes = self.shapes()
        point = self.random(rng) if rng else {name: np.full(s, 0.5) for name, s in shapes.items()}
        own = self._own_layers(resolved)
        if "size" in point:
            point["size"][:] = middle(self.sizes.index(len(own)), len(self.sizes))
        if "shift" in point:
            point["shift"][:] = 0.5
        for layer in range(self.depth):
            key = point["removal"][layer] / 2
            point["removal"][layer] = key if layer in own else key + 0.5
        for layer, slot in zip(own, resolved.slots, strict=True):
            self._encode_slot(point, layer, slot)
        if self.outer is not None:
            self.outer.encode(point, resolved)
        back = plan(self.decode(point))
        same = _shape(back) == _shape(resolved) if nearest else back.digest == resolved.digest
        if not same:
            raise ConfigError(_ELSEWHERE)
        return point

    def _own_layers(self, resolved: Plan) -> list[int]:
        """For each slot the layer in whose place it stands: its own, or as near to that as can be."""
        taken = [[layer for _, layer in slot.layers] for slot in resolved.slots]

        def cost(slot: int, layer: int) -> float | None:
            near = self.layers_for(layer)
            return sum(abs(t - layer) for t in taken[slot]) if set(taken[slot]) <= set(near) else None

        if len(taken) not in self.sizes:
            sizes = " or ".join(map(str, self.sizes))
            layers = [one[0] for one in taken]
            raise ConfigError(f"a recipe of the layers {layers} is not in a space of {sizes} layers")
        own = assign(len(taken), self.depth, cost, set(range(self.depth)) - set(self.removable))
        if own is None:
            raise ConfigError(_ELSEWHERE)
        return own

    def _encode_slot(self, point: Point, layer: int, slot: Slot) -> None:
        operation = slot.operation
        try:
            members = [self.models.index(model) for model, _ in slot.layers]
            kind = members[0]
            if self.parts and slots.is_parts(operation):
                kind = self.kinds - 1
            elif operation.method != SELECT:
                kind = len(self.models) + self.methods.index(operation.method)
        except ValueError:
            raise ConfigError(f"layer {layer}: its model or method is not in this space") from None
        point["kind"][layer] = middle(kind, self.kinds)
        if self.neighbours:
            for member, (_, taken) in zip(members, slot.layers, strict=True):
                point["shift"][layer, member] = at_offset(taken - layer, self.neighbours)
        if kind == self.parts_kind:
            point["part"][layer] = [middle(member, len(self.models)) for member in members]
        elif operation.method != SELECT:
            merging.set_merge(members, operation, point["share"][layer], point["weight"][layer])

    def mutate(self, point: Point, rng: np.random.RandomState) -> Point:
        """A neighbour: one to a few moves, each of which changes the recipe.

        The moves: a removed layer changes places with a kept one; a kept layer's kind changes; a
        merge's members or weights change, or a part's member; a slot takes a neighbour's layer; the
        embeddings or the head change. None of them changes the size; where it is open, a move may
        also be a step to the next size.
        """
        return moves.mutate(self, point, rng)

    def recombine(self, first: Point, second: Point, rng: np.random.RandomState) -> Point:
        """A child that takes each layer's entries from one of two parents, each component's likewise,
        and the size of the first.
        """
        return moves.recombine(self, first, second, rng)


def _shape(resolved: Plan) -> list[Any]:
    """All of a plan but the values of what is searched, and the order of a merge's sources."""
    made = [(slot.layers, slot.operation) for slot in resolved.slots]
    edits = [slot.edits for slot in resolved.slots]
    return [*(merging.shape(*one) for one in (*made, resolved.embeddings, resolved.head)), edits]
