"""The search space: points of arrays that decode to plans, and how one point becomes another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.space import decoding, encoding, merging, moves
from gptailor_merge.space.layout import Layout
from gptailor_merge.space.points import Array, Point, middle


@dataclass(frozen=True)
class Space(Layout):
    """All plans of one size, or of several, over one family."""

    def random(self, rng: np.random.RandomState) -> dict[str, Array]:
        """Returns a uniformly random point."""
        return {name: rng.uniform(size=shape) for name, shape in self.shapes().items()}

    def decode(self, point: Point) -> Plan:
        """Returns the plan of a point; every point has one."""
        return decoding.decode(self, point)

    def encode(self, plan: Plan, rng: np.random.RandomState | None = None, *, nearest: bool = False) -> Point:
        """Returns a point that decodes to this plan.

        Args:
            rng: draws the entries that the plan leaves open; by default they are 1/2.
            nearest: accept weights that come back rounded to those of the space.

        Raises:
            ConfigError: the plan is not in this space.
        """
        point = encoding.half(self) if rng is None else self.random(rng)
        return encoding.encode(self, plan, point, nearest=nearest)

    def recipe(self, plan: Plan) -> Recipe:
        """Writes a plan over this family as a recipe."""
        return recipe_of(plan, self.depth)

    def merges(self, removed: set[int]) -> list[Plan]:
        """Returns the usual merges of the whole family that this space has, without some layers.

        They may be of a size that this space lacks. Embeddings and head are merged alike where the space
        merges them, and else the base's.
        """
        pruned, point = self._pruned(removed)
        plans = []
        for place, method in enumerate(self.methods):
            point["kind"][:] = middle(len(self.models) + place, self.kinds)
            for number, merge in enumerate(merging.whole_family(method, len(self.models))):
                for share, weight in zip(point["share"], point["weight"], strict=True):
                    merging.set_merge(merge.members, merge.operation, share, weight)
                if self.outer is not None:
                    self.outer.merge(point, method, number)
                plans.append(pruned.decode(point))
        return plans

    def select(self, member: int, removed: set[int]) -> Plan:
        """Returns the plan of one member without some layers; it may be of a size that this space lacks."""
        pruned, point = self._pruned(removed)
        point["kind"][:] = middle(member, self.kinds)
        if self.outer is not None:
            self.outer.select(point, self.models[member])
        return pruned.decode(point)

    def _pruned(self, removed: set[int]) -> tuple[Space, dict[str, Array]]:
        """Returns the space of the models without some layers, and a point of it without these."""
        sizes = (self.depth - len(removed),)
        removable = tuple(sorted(set(self.removable) | removed))
        pruned = replace(self, sizes=sizes, removable=removable, patterns={})
        point = encoding.half(pruned)
        point["removal"][:] = 0.0
        point["removal"][sorted(removed)] = 1.0
        return pruned, point

    def mutate(self, point: Point, rng: np.random.RandomState) -> Point:
        """Returns a neighbour: one to a few moves away, each of which changes the plan.

        A removed layer changes places with a kept one; a kept layer's kind changes; a merge's members or
        weights change, or a part's member; a slot takes a neighbour's layer; the embeddings or the head
        change. None of these changes the size; where it is open, a move may also be a step to the next
        size.
        """
        return moves.mutate(self, point, rng)

    def recombine(self, first: Point, second: Point, rng: np.random.RandomState) -> Point:
        """Returns a child that takes the entries of each layer and of each component from one of two
        parents, and the size from the first.
        """
        return moves.recombine(self, first, second, rng)
