"""Recipes <-> points of arrays. Every point decodes to a valid recipe of a target size.

A point is four arrays, or five, with entries in [0, 1]:

    size     [1]                 how many layers stay, where that is open
    removal  [layers]            the layers with the highest keys are removed, exactly as many as needed
    kind     [layers]            which member is selected, or which method merges
    share    [layers, members]   which members a merge takes: those above 1/2, or the highest
    weight   [layers, members]   with what weight; slerp's t is the base's entry

Removed layers keep their other entries, so that a layer that comes back is as it was.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from mergekit.merge_methods.base import BasePolicy, MergeMethodSpec
from numpy.typing import NDArray

from gptailor_merge.errors import ConfigError, Problem
from gptailor_merge.mergekit_plugin import SELECT, Settings, method_names, method_spec
from gptailor_merge.recipe.depth import choose
from gptailor_merge.recipe.operations import Plan, Slot, plan
from gptailor_merge.recipe.recipe import Recipe

Point = Mapping[str, NDArray[np.float64]]

WEIGHTS = (0.05, 1.0)
"""Range of a source's merge weight."""
DECIMALS = 2
"""Merge weights are rounded, so that recipes are readable and equal ones are recognised."""
SEARCHABLE = {"weight", "t"}
"""Required parameters that the space can give a value."""


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

    def __post_init__(self) -> None:
        texts = dict.fromkeys(filter(None, map(self._size_problem, self.sizes)))
        problems = [Problem(("target",), text) for text in texts]
        for layer in self.removable:
            if not 0 <= layer < self.depth:
                message = f"layer out of range, found {layer} of {self.depth} layers"
                problems.append(Problem(("operations", "removable"), message))
        for index, name in enumerate(self.methods):
            text = self._method_problem(name)
            if text:
                problems.append(Problem(("operations", "merge", index), text))
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

    def _method_problem(self, name: str) -> str | None:
        spec = method_spec(name)
        if spec is None or name == SELECT:
            known = ", ".join(n for n in method_names() if n != SELECT)
            return f"unknown method, found {name!r}; known are {known}"
        needed = {p.name for p in spec.parameters if p.required} - SEARCHABLE
        if needed:
            return f"{name} needs {', '.join(sorted(needed))}, which the search cannot choose"
        fewest, available = _fewest(spec), len(self.models) - _spares_base(spec)
        if fewest > available:
            without = " besides its base" if _spares_base(spec) else ""
            return f"{name} merges {fewest} models or more, the family has {available}{without}"
        return None

    @property
    def kinds(self) -> int:
        """Number of things that can happen to a kept layer."""
        return len(self.models) + len(self.methods)

    def random(self, rng: np.random.RandomState) -> Point:
        """A uniformly random point."""
        shapes = self.shapes()
        return {name: rng.uniform(size=shape) for name, shape in shapes.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays of a point."""
        grid = (self.depth, len(self.models))
        size = {"size": (1,)} if len(self.sizes) > 1 else {}
        return {**size, "removal": (self.depth,), "kind": (self.depth,), "share": grid, "weight": grid}

    def size(self, point: Point) -> int:
        """How many layers a point keeps."""
        return self.sizes[self._size_index(point)]

    def _size_index(self, point: Point) -> int:
        return _index(point["size"][0], len(self.sizes)) if "size" in point else 0

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

    def decode(self, point: Point) -> Recipe:
        """The recipe of a point; total."""
        kept = self.kept_layers(point)
        parts = [(layer, self._slice(point, layer) if layer in kept else None) for layer in range(self.depth)]
        slices: list[dict[str, Any]] = []
        # One slice for neighbours that are made alike.
        for _, group in groupby(parts, key=_grouping):
            run = list(group)
            first, last, made = run[0][0], run[-1][0] + 1, run[0][1]
            if made is None:
                source = {"model": self.models[0], "layer_range": [first, last]}
                slices.append({"sources": [source], "parameters": {"op": "remove"}})
            else:
                sources = [{**source, "layer_range": [first, last]} for source in made["sources"]]
                slices.append({**made, "sources": sources})
        document = {"merge_method": "tailor", "base_model": self.models[0], "slices": slices}
        dtypes = {"dtype": self.dtype, "out_dtype": self.out_dtype}
        return Recipe.from_mapping(document | {k: v for k, v in dtypes.items() if v is not None})

    def select(self, member: int, removed: set[int]) -> Recipe:
        """One member without some layers; not in this space where their number is another."""
        point = {name: np.zeros(shape) for name, shape in self.shapes().items()}
        point["kind"][:] = (member + 0.5) / self.kinds
        point["removal"][sorted(removed)] = 1.0
        others = tuple(sorted(set(self.removable) | removed))
        left = self.depth - len(removed)
        return replace(self, sizes=(left,), removable=others, patterns={}).decode(
            {name: values for name, values in point.items() if name != "size"}
        )

    def _slice(self, point: Point, layer: int) -> dict[str, Any]:
        """The slice of one kept layer, without its layer range."""
        kind = _index(point["kind"][layer], self.kinds)
        if kind < len(self.models):
            return {"sources": [{"model": self.models[kind]}], "parameters": {"op": "select"}}
        method = self.methods[kind - len(self.models)]
        spec = method_spec(method)
        assert spec is not None
        share, weight = point["share"][layer], point["weight"][layer]
        members, base = self._members(spec, share)
        required = {p.name for p in spec.parameters if p.required}
        sources: list[dict[str, Any]] = []
        for member in members:
            source: dict[str, Any] = {"model": self.models[member]}
            if "weight" in required and member != base:
                source["parameters"] = {"weight": _scale(weight[member])}
            sources.append(source)
        parameters: dict[str, Any] = {"op": "merge", "method": method}
        if "t" in required:
            parameters["t"] = _scale(weight[0])
        made: dict[str, Any] = {"sources": sources, "parameters": parameters}
        if base is not None and base != 0:
            made["base_model"] = self.models[base]
        return made

    def _members(self, spec: MergeMethodSpec, share: NDArray[np.float64]) -> tuple[list[int], int | None]:
        """The members that a merge takes, and which of them is its base."""
        order = sorted(range(len(share)), key=lambda member: (-share[member], member))
        at_most = spec.contract.max_inputs or spec.contract.max_non_base or len(order)
        if spec.contract.base is BasePolicy.REQUIRED and at_most > 2:
            fewest = _fewest(spec) - 1
            others = [member for member in order if member != 0]
            chosen = [member for member in others if share[member] > 0.5]
            return [0, *sorted(chosen if len(chosen) >= fewest else others[:fewest])], 0
        if _spares_base(spec):
            order.remove(0)
        chosen = [member for member in order if share[member] > 0.5]
        fewest = _fewest(spec)
        chosen = sorted((chosen if len(chosen) >= fewest else order[:fewest])[:at_most])
        return chosen, chosen[0] if spec.contract.base is BasePolicy.REQUIRED else None

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
        kept = [slot.layers[0][1] for slot in resolved.slots]
        if sorted(set(kept)) != kept or len(kept) not in self.sizes:
            sizes = " or ".join(map(str, self.sizes))
            raise ConfigError(f"a recipe of the layers {kept} is not in a space of {sizes} layers")
        if "size" in point:
            self._set_size(point, self.sizes.index(len(kept)))
        for layer in range(self.depth):
            low_half = layer in kept
            key = point["removal"][layer] / 2
            point["removal"][layer] = key if low_half else key + 0.5
        for slot in resolved.slots:
            self._encode_slot(point, slot)
        back = plan(self.decode(point))
        same = _shape(back) == _shape(resolved) if nearest else back.digest == resolved.digest
        if not same:
            raise ConfigError("the recipe uses layers, methods or parameters that this space does not have")
        return point

    def _set_size(self, point: Point, index: int) -> None:
        point["size"][:] = (index + 0.5) / len(self.sizes)

    def _encode_slot(self, point: Point, slot: Slot) -> None:
        layer = slot.layers[0][1]
        operation = slot.operation
        try:
            members = [self.models.index(model) for model, _ in slot.layers]
            kind = members[0]
            if operation.method != SELECT:
                kind = len(self.models) + self.methods.index(operation.method)
        except ValueError:
            raise ConfigError(f"layer {layer}: its model or method is not in this space") from None
        point["kind"][layer] = (kind + 0.5) / self.kinds
        if operation.method == SELECT:
            return
        for member in range(len(self.models)):
            point["share"][layer, member] = 0.75 if member in members else 0.25
        for member, settings in zip(members, operation.inputs, strict=True):
            point["weight"][layer, member] = _unscale(dict(settings).get("weight", WEIGHTS[0]))
        shared = dict(operation.shared)
        if "t" in shared:
            point["weight"][layer, 0] = _unscale(shared["t"])

    def mutate(self, point: Point, rng: np.random.RandomState) -> Point:
        """A neighbour: one to a few moves, each of which changes the recipe.

        The moves: a removed layer changes places with a kept one; a kept layer's kind changes; a
        merge's members or weights change. None of them changes the size; where it is open, a move
        may also be a step to the next size.
        """
        child = {name: values.copy() for name, values in point.items()}
        for _ in range(min(rng.geometric(0.6), 4)):
            if "size" in child and rng.uniform() < 0.25:
                self._step_size(child, rng)
                continue
            kept = self.kept_layers(child)
            removed = sorted(set(range(self.depth)) - set(kept))
            free = [layer for layer in kept if layer in self.removable]
            if free and rng.uniform() < 0.4:
                out, back = rng.choice(free), rng.choice(removed)
                keys = child["removal"]
                keys[out], keys[back] = keys[back], keys[out]
                continue
            layer = rng.choice(kept)
            kind = _index(child["kind"][layer], self.kinds)
            if kind >= len(self.models) and rng.uniform() < 0.5:
                member = rng.randint(len(self.models))
                if rng.uniform() < 0.3:
                    child["share"][layer, member] = 1 - child["share"][layer, member]
                step = rng.normal(scale=0.15, size=len(self.models))
                child["weight"][layer] = np.clip(child["weight"][layer] + step, 0, 1)
            elif self.kinds > 1:
                others = [other for other in range(self.kinds) if other != kind]
                child["kind"][layer] = (rng.choice(others) + 0.5) / self.kinds
        return child

    def _step_size(self, point: Point, rng: np.random.RandomState) -> None:
        index = self._size_index(point)
        ends = {0: 1, len(self.sizes) - 1: -1}
        self._set_size(point, index + ends.get(index, rng.choice([-1, 1])))

    def recombine(self, first: Point, second: Point, rng: np.random.RandomState) -> Point:
        """A child that takes each layer's entries from one of two parents, and the size of the first."""
        mask = rng.uniform(size=self.depth) < 0.5
        mixed = {
            name: np.where(mask if values.ndim == 1 else mask[:, None], values, second[name])
            for name, values in first.items()
            if name != "size"
        }
        return {name: mixed.get(name, values) for name, values in first.items()}


def _shape(resolved: Plan) -> list[Any]:
    """All of a plan's slots but the values of what is searched, and the order of a merge's sources."""
    shape = []
    for slot in resolved.slots:
        operation = slot.operation
        base = None if operation.base is None else slot.layers[operation.base]
        sources = zip(slot.layers, map(_fixed, operation.inputs), strict=True)
        shape.append((operation.method, base, sorted(sources), _fixed(operation.shared), slot.edits))
    return shape


def _fixed(settings: Settings) -> Settings:
    return tuple((name, 0.0 if name in SEARCHABLE else value) for name, value in settings)


def _grouping(part: tuple[int, dict[str, Any] | None]) -> str:
    """Equal for neighbours that one slice can hold: removals, and selections of one member."""
    layer, made = part
    if made is None:
        return "remove"
    if made["parameters"]["op"] == "select":
        return f"select {made['sources'][0]['model']}"
    return f"merge {layer}"


def _fewest(spec: MergeMethodSpec) -> int:
    """How many models a merge takes at the least, the base included; never fewer than two."""
    contract = spec.contract
    return max(2, int(contract.min_inputs), int(contract.min_non_base or 0))


def _spares_base(spec: MergeMethodSpec) -> bool:
    """Methods that may go without a base are searched without one; the base is no source then."""
    return bool(spec.contract.base is BasePolicy.OPTIONAL)


def _index(value: float, count: int) -> int:
    return min(int(np.clip(value, 0, 1) * count), count - 1)


def _scale(value: float) -> float:
    low, high = WEIGHTS
    return round(float(low + (high - low) * np.clip(value, 0, 1)), DECIMALS)


def _unscale(value: Any) -> float:
    low, high = WEIGHTS
    return (float(value) - low) / (high - low)
