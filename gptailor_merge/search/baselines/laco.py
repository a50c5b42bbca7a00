"""Layers collapse into their neighbours: several layers of one model in one slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gptailor_merge.errors import ConfigError, SearchError
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.hidden import SIMILARITY
from gptailor_merge.search.baselines.problem import Problem, extends
from gptailor_merge.search.baselines.subject import Subject
from gptailor_merge.space.space import Space

Slot = dict[int, float]
"""Layer -> its coefficient in a slot's sum; the first layer is the one whose place it takes. Σ = 1."""


Similarity = Callable[[list[Slot]], float]


THRESHOLDS = tuple(number / 100 for number in range(95, -101, -5))


@dataclass(frozen=True)
class LaCo:
    """Collapses rear layers into a prior one wherever the model's output stays similar enough.

    Y. Yang et al., LaCo: Large Language Model Pruning via Layer Collapse, arXiv 2402.11187. Its merge is
    θ*_l = θ_l + Σ_{k=1..m} (θ_{l+k} − θ_l), m + 1 = `merged` (the published code adds the differences to
    what it has added to before, which leaves θ_{l+m}; this is the paper's formula). From the last layers
    down: merge if the cosine of the last hidden states with those of the dense model is above a threshold,
    and go on `interval` layers further down, else one.

    The paper chooses its settings by hand until a size comes out. Here the threshold is the highest, in
    steps of 0.05, that reaches the size, and the last merge takes no more layers than are left to go; of
    several numbers of layers in a merge the one is taken that leaves the model most similar. Where no
    threshold reaches the size, it begins at the last layers again. Only layers that may be removed take part.
    """

    merged: tuple[int, ...] = (4, 3, 2)
    interval: int = 2
    in_space = False

    def candidates(self, space: Space, budget: int) -> int:
        """Each place, for each number of layers that have gone."""
        rounds = sum(space.depth - size for size in space.sizes)
        return 1 + len(space.sizes) + len(self.merged) * len(space.removable) * rounds

    def find(self, problem: Problem) -> list[Recipe]:
        subject, states = problem.subject, problem.states
        if subject.member is None:
            raise ConfigError(f"laco prunes one model, and {subject.name} is a merge of several")
        dense = [{layer: 1.0} for layer in range(subject.depth)]
        known: dict[str, float] = {}

        def similarity(slots: list[Slot]) -> float:
            key = repr(slots)
            if key not in known:
                reference = recipe_of(subject, dense)
                measured = problem.run.measure(
                    recipe_of(subject, slots), lambda made: states.similarity(made, plan(reference))
                )
                known[key] = measured.scores[SIMILARITY]["last layer"].mean
            return known[key]

        similarity(dense)  # whose states the others are compared with
        return [
            recipe_of(subject, self._collapsed(problem.space, size, similarity))
            for size in problem.space.sizes
        ]

    def _collapsed(self, space: Space, size: int, similarity: Similarity) -> list[Slot]:
        found = [self._reached(space, size, similarity, merged) for merged in self.merged]
        reached = [slots for slots in found if slots is not None]
        if not reached:
            raise SearchError(
                f"laco cannot collapse {space.depth} layers to {size}: it merges neighbours of one kind that "
                "may be removed, and leaves the first of them"
            )
        return max(reached, key=similarity)

    def _reached(self, space: Space, size: int, similarity: Similarity, merged: int) -> list[Slot] | None:
        """A model of the size, by the highest threshold that gives one."""
        for passes in (1, len(space.removable)):
            for threshold in THRESHOLDS:
                slots = [{layer: 1.0} for layer in range(space.depth)]
                for _ in range(passes):
                    for wider in self._pass(space, slots, size, similarity, merged, threshold):
                        slots = wider
                if len(slots) == size:
                    return slots
        return None

    def _pass(
        self,
        space: Space,
        slots: list[Slot],
        size: int,
        similarity: Similarity,
        merged: int,
        threshold: float,
    ) -> Iterator[list[Slot]]:
        """The model after each merge, from the last layers down."""
        lowest, behind = min(space.removable), space.depth - 1 - max(space.removable)
        at = max(len(slots) - behind - merged, lowest)
        while at >= lowest and len(slots) > size:
            count = min(merged - 1, len(slots) - behind - 1 - at, len(slots) - size)
            wider = collapse(slots, at, count) if count > 0 else slots
            allowed = count > 0 and _allowed(space, slots[at : at + count + 1], wider, size)
            if allowed and similarity(wider) > threshold:
                slots = wider
                yield slots
                at = min(at - self.interval, len(slots) - behind - merged)
            else:
                at -= 1


def collapse(slots: list[Slot], at: int, count: int) -> list[Slot]:
    """So many slots merged into the one before them: θ_at + Σ_k (θ_{at+k} − θ_at)."""
    parts = [(slots[at], 1.0 - count), *((slot, 1.0) for slot in slots[at + 1 : at + count + 1])]
    merged: Slot = {}
    for slot, factor in parts:
        for layer, coefficient in slot.items():
            merged[layer] = merged.get(layer, 0.0) + factor * coefficient
    return [*slots[:at], merged, *slots[at + count + 1 :]]


def _allowed(space: Space, merging: list[Slot], wider: list[Slot], size: int) -> bool:
    """Whether only layers of one kind that may be removed take part, and the size can still be reached."""
    layers = {layer for slot in merging for layer in slot}
    kinds = {space.layer_kinds[layer] for layer in layers} if space.layer_kinds else {None}
    gone = set(range(space.depth)) - {next(iter(slot)) for slot in wider}
    return layers <= set(space.removable) and len(kinds) == 1 and extends(space, gone, size)


def recipe_of(subject: Subject, slots: list[Slot]) -> Recipe:
    """The recipe of collapsed layers; neighbours that are as they were share a slice."""
    (model,) = subject.sources
    slices: list[dict[str, Any]] = []
    for alone, group in groupby(slots, key=lambda slot: len(slot) == 1):
        if not alone:
            slices += [_slice(model, slot) for slot in group]
            continue
        layers = [next(iter(slot)) for slot in group]
        for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
            own = [layer for _, layer in run]
            source = {"model": model, "layer_range": [own[0], own[-1] + 1]}
            slices.append({"sources": [source], "parameters": {"op": "select"}})
    return subject.recipe(slices)


def _slice(model: str, slot: Slot) -> dict[str, Any]:
    """Σ c_i θ_i with Σ c_i = 1 as task arithmetic: θ_b + Σ_{i≠b} c_i (θ_i − θ_b)."""
    (base, _), *others = slot.items()
    sources = [_source(model, base, {"base": True})]
    sources += [_source(model, layer, {"weight": coefficient}) for layer, coefficient in others]
    return {"sources": sources, "parameters": {"op": "merge", "method": "task_arithmetic"}}


def _source(model: str, layer: int, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "layer_range": [layer, layer + 1], "parameters": parameters}
