"""The layout of a search space: which arrays a point has, and what their entries stand for.

A point is these arrays, with entries in [0, 1]:

    size     [1]                 how many layers stay, where that is open
    removal  [layers]            the layers with the highest keys are removed, exactly as many as needed
    kind     [layers]            which member is selected, which method merges, or that parts are mixed
    share    [layers, members]   which members a merge takes: those above 1/2, or the highest
    weight   [layers, members]   with what weight; slerp's t is the base's entry
    shift    [layers, members]   whether a neighbour of the member's layer is taken instead
    part     [layers, 2]         the members whose attention and whose MLP are mixed

and those of outer.py; a space without neighbours has no `shift`, one without parts no `part`. Removed
layers keep their other entries, so that a layer that comes back is as it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.models.depth import choose
from gptailor_merge.space import merging
from gptailor_merge.space.outer import Outer
from gptailor_merge.space.points import Point, index, offset


@dataclass(frozen=True)
class Layout:
    """The family, the sizes and the operations of a space, and how a point chooses among them.

    Attributes:
        models: the members as recipes name them, the base first.
        depth: layers of every member.
        sizes: how many layers the pruned model may have, ascending.
        removable: indices of the layers that may be removed.
        methods: mergekit methods that may merge a layer.
        layer_kinds: the kind of each layer; empty where all are alike.
        patterns: size -> the kinds that the pruned model's slots must have, see
            models.architecture.pattern; a size in which layers of any kinds may follow each other
            has no entry.
        outer: the choices for embeddings and head; None where they are the base's.
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
        if not 1 <= size <= self.depth:
            return f"expected 1 to {self.depth} layers to keep of {self.depth}, found {size}"
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
        """The number of things that can happen to a kept layer."""
        return len(self.models) + len(self.methods) + bool(self.parts)

    @property
    def parts_kind(self) -> int | None:
        """The kind that mixes parts, the last one; None where parts may not be mixed."""
        return self.kinds - 1 if self.parts else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of a point's arrays."""
        grid = (self.depth, len(self.models))
        shapes: dict[str, tuple[int, ...]] = {"size": (1,)} if len(self.sizes) > 1 else {}
        shapes |= {"removal": (self.depth,), "kind": (self.depth,), "share": grid, "weight": grid}
        shapes |= {"shift": grid} if self.neighbours else {}
        shapes |= {"part": (self.depth, 2)} if self.parts else {}
        return shapes | (self.outer.shapes() if self.outer is not None else {})

    def size(self, point: Point) -> int:
        """Returns how many layers a point keeps."""
        return self.sizes[index(point["size"][0], len(self.sizes)) if "size" in point else 0]

    def kept_layers(self, point: Point) -> list[int]:
        """Returns the source layers that a point keeps, ascending."""
        return self.keep(point["removal"].tolist(), self.size(point))

    def keep(self, keys: Sequence[float], size: int) -> list[int]:
        """Returns the layers that stay when those with the highest keys are removed, ascending.

        Where the slots' kinds are fixed, these are the layers with the lowest sum of keys that have them.
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
        """Returns the layers that the slot of a layer may take: its own and neighbours of its kind."""
        if not self.neighbours or layer not in self.removable:
            return [layer]
        near = range(max(0, layer - self.neighbours), min(self.depth, layer + self.neighbours + 1))
        return [neighbour for neighbour in near if self._are_alike(layer, neighbour)]

    def _are_alike(self, layer: int, neighbour: int) -> bool:
        return not self.layer_kinds or self.layer_kinds[layer] == self.layer_kinds[neighbour]

    def source_layer(self, point: Point, layer: int, member: int) -> int:
        """Returns the layer of a member that the slot of a layer takes."""
        if not self.neighbours:
            return layer
        neighbour = layer + offset(point["shift"][layer, member], self.neighbours)
        return neighbour if neighbour in self.layers_for(layer) else layer

    def kind(self, point: Point, layer: int) -> int:
        """Returns what happens to a layer: a member that is selected, a method that merges, or parts."""
        return index(point["kind"][layer], self.kinds)

    def members(self, point: Point, layer: int) -> tuple[int, ...]:
        """Returns the members that a kept layer's slot takes layers of."""
        kind = self.kind(point, layer)
        if kind < len(self.models):
            return (kind,)
        if kind == self.parts_kind:
            return self.part_members(point, layer)
        return self.merge(point, layer).members

    def merge(self, point: Point, layer: int) -> merging.MemberMerge:
        """Returns the merge of a layer whose kind is a method."""
        method = self.methods[self.kind(point, layer) - len(self.models)]
        return merging.merge(method, point["share"][layer], point["weight"][layer])

    def part_members(self, point: Point, layer: int) -> tuple[int, int]:
        """Returns the members whose attention and whose MLP the slot of a layer mixes."""
        attention, mlp = (index(entry, len(self.models)) for entry in point["part"][layer])
        return attention, mlp
