"""Embeddings and head as parts of the search space: selected from a member, or merged.

They add three arrays to a point. A component is the embeddings or the head; where these are one
matrix, there is one component.

    outer_kind    [components]            which member is selected, or which method merges
    outer_share   [components, members]   as `share` and
    outer_weight  [components, members]   `weight` of the layers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.plan import SELECT, Plan
from gptailor_merge.recipe.recipe import BASE
from gptailor_merge.space import merging
from gptailor_merge.space.points import Array, Point, index, middle

KIND, SHARE, WEIGHT = ARRAYS = ("outer_kind", "outer_share", "outer_weight")


METHODS = ("linear", "task_arithmetic")
"""How embeddings and heads are merged where `operations.outer` is merge."""


COMPONENTS = ("embeddings", "head")


@dataclass(frozen=True)
class Outer:
    """What embeddings and head may be.

    Attributes:
        models: the members whose vocabulary is the base's, as recipes name them, the base first.
        methods: mergekit methods that may merge them.
        tied: whether the head is the embedding matrix.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...] = ()
    tied: bool = False

    @property
    def kinds(self) -> int:
        """Number of things that a component can be."""
        return len(self.models) + len(self.methods)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays that it adds to a point."""
        components = 1 if self.tied else len(COMPONENTS)
        grid = (components, len(self.models))
        return {KIND: (components,), SHARE: grid, WEIGHT: grid}

    def decode(self, point: Point) -> dict[str, Any]:
        """A recipe's `embeddings` and `head`, as its document has them."""
        rows = range(len(point[KIND]))
        made = [self._component(point[KIND][i], point[SHARE][i], point[WEIGHT][i]) for i in rows]
        return dict(zip(COMPONENTS, made * 2 if self.tied else made, strict=True))

    def select(self, point: Point, model: str) -> None:
        """Take both from a member; from the base, where that member's do not fit."""
        member = self.models.index(model) if model in self.models else 0
        point[KIND][:] = middle(member, self.kinds)

    def encode(self, point: Point, resolved: Plan) -> None:
        """Set a point's entries to what a plan has.

        Raises:
            ConfigError: embeddings or a head that are not in the space.
        """
        components = (resolved.embeddings, resolved.head)
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
        """Change one component: what it is, or a merge's members or weights."""
        row = rng.randint(len(point[KIND]))
        kind = index(point[KIND][row], self.kinds)
        if kind >= len(self.models) and rng.uniform() < 0.5:
            merging.change(point[SHARE][row], point[WEIGHT][row], rng)
        else:
            others = [other for other in range(self.kinds) if other != kind]
            point[KIND][row] = middle(rng.choice(others), self.kinds)

    def _component(self, kind: float, share: Array, weight: Array) -> Any:
        choice = index(kind, self.kinds)
        if choice < len(self.models):
            return self._name(choice)
        method = self.methods[choice - len(self.models)]
        made = merging.merge(method, share, weight)
        return {"method": method, "weights": {self._name(m): w for m, w in made.weights.items()}}

    def _name(self, member: int) -> str:
        return BASE if member == 0 else self.models[member]
