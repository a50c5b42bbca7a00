"""Embeddings and head as parts of the search space: selected from a member, or merged.

They add three arrays to a point. A component is the embeddings or the head; where these are one
matrix, there is one component.

    outer_kind    [components]            which member is selected, or which method merges
    outer_share   [components, members]   as `share` and
    outer_weight  [components, members]   `weight` of the layers
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.plan import SELECT, Component, Operation, Plan
from gptailor_merge.space import merging
from gptailor_merge.space.points import Array, Point, index, middle

KIND, SHARE, WEIGHT = ARRAYS = ("outer_kind", "outer_share", "outer_weight")


METHODS = ("linear", "task_arithmetic")
"""The methods that merge embeddings and heads where `operations.outer` is merge."""


COMPONENTS = ("embeddings", "head")


@dataclass(frozen=True)
class Outer:
    """The choices for embeddings and head.

    Attributes:
        models: the members whose vocabulary is the base's, as recipes name them, the base first.
        methods: mergekit methods that may merge them.
        tied: True where the head is the embedding matrix.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...] = ()
    tied: bool = False

    @property
    def kinds(self) -> int:
        """The number of things that a component can be."""
        return len(self.models) + len(self.methods)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the arrays that it adds to a point."""
        components = 1 if self.tied else len(COMPONENTS)
        grid = (components, len(self.models))
        return {KIND: (components,), SHARE: grid, WEIGHT: grid}

    def decode(self, point: Point) -> tuple[Component, Component]:
        """Returns the embeddings and the head that a point stands for."""
        rows = range(len(point[KIND]))
        components = [self._component(point[KIND][i], point[SHARE][i], point[WEIGHT][i]) for i in rows]
        return components[0], components[-1]

    def select(self, point: Point, model: str) -> None:
        """Takes both from a member; from the base where that member's do not fit."""
        member = self.models.index(model) if model in self.models else 0
        point[KIND][:] = middle(member, self.kinds)

    def merge(self, point: Point, method: str, number: int) -> None:
        """Merges both from all members by a method; takes the base's where the space has no such merge.

        Args:
            number: says which of the usual merges, see merging.whole_family.
        """
        merges = merging.whole_family(method, len(self.models)) if method in self.methods else []
        if number >= len(merges):
            self.select(point, self.models[0])
            return
        point[KIND][:] = middle(len(self.models) + self.methods.index(method), self.kinds)
        for share, weight in zip(point[SHARE], point[WEIGHT], strict=True):
            merging.set_merge(merges[number].members, merges[number].operation, share, weight)

    def encode(self, point: Point, plan: Plan) -> None:
        """Sets a point's entries to the embeddings and the head of a plan.

        Raises:
            ConfigError: embeddings or a head that are not in the space.
        """
        components = (plan.embeddings, plan.head)
        for row, (models, operation) in enumerate(components[: len(point[KIND])]):
            try:
                members = [self.models.index(model) for model in models]
                kind = members[0]
                if operation.method != SELECT:
                    kind = len(self.models) + self.methods.index(operation.method)
            except ValueError:
                raise ConfigError(f"{COMPONENTS[row]}: its model or method is not in this space") from None
            point[KIND][row] = middle(kind, self.kinds)
            if operation.method != SELECT:
                merging.set_merge(members, operation, point[SHARE][row], point[WEIGHT][row])

    def mutate(self, point: dict[str, Array], rng: np.random.RandomState) -> None:
        """Changes one component: what it is, or a merge's members or weights."""
        row = rng.randint(len(point[KIND]))
        kind = index(point[KIND][row], self.kinds)
        if kind >= len(self.models) and rng.uniform() < 0.5:
            merging.change(point[SHARE][row], point[WEIGHT][row], rng)
        else:
            alternatives = [alternative for alternative in range(self.kinds) if alternative != kind]
            point[KIND][row] = middle(rng.choice(alternatives), self.kinds)

    def _component(self, kind: float, share: Array, weight: Array) -> Component:
        choice = index(kind, self.kinds)
        if choice < len(self.models):
            return whole(self.models[choice])
        merge = merging.merge(self.methods[choice - len(self.models)], share, weight)
        return Component(tuple(self.models[member] for member in merge.members), merge.operation)


def whole(model: str) -> Component:
    """Returns a component that is a member's as it is."""
    return Component((model,), Operation(SELECT, ((),)))
