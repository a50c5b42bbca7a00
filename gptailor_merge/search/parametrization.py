"""The space as nevergrad's optimisers take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nevergrad as ng
import numpy as np

from gptailor_merge.space.space import Space


def parametrization(space: Space, seed: int) -> RecipeParameters:
    """Points of a space, drawn and changed with random numbers of this seed."""
    arrays = {
        name: ng.p.Array(init=np.full(shape, 0.5), lower=0.0, upper=1.0)
        for name, shape in space.shapes().items()
    }
    parameters = RecipeParameters(space, arrays)
    parameters.random_state.seed(seed)
    return parameters


class RecipeParameters(ng.p.Dict):  # type: ignore[misc]
    """nevergrad's parameter whose mutation and recombination are the space's own."""

    value: Any

    def __init__(self, space: Space, arrays: Mapping[str, Any]) -> None:
        super().__init__(**arrays)
        self.space = space

    def mutate(self) -> None:
        """See Space.mutate."""
        self._check_frozen()
        self.value = self.space.mutate(self.value, self.random_state)

    def sample(self) -> RecipeParameters:
        """A uniformly random point."""
        child: RecipeParameters = self.spawn_child(self.space.random(self.random_state))
        child._set_parenthood(None)
        return child

    def recombine(self, *others: RecipeParameters) -> None:
        """See Space.recombine."""
        self._check_frozen()
        for other in others:
            self.value = self.space.recombine(self.value, other.value, self.random_state)
