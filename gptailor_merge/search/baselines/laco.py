"""Layers collapse into their neighbours: several layers of one model in one slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gptailor_merge.errors import ConfigError, SearchError
from gptailor_merge.recipe.plan import Operation, Plan, Slot
from gptailor_merge.scoring.hidden_states import SIMILARITY
from gptailor_merge.search.baselines.layer_sets import extends
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.baselines.subject import Subject
from gptailor_merge.space.space import Space

LayerSum = Mapping[int, float]
"""Layer -> its coefficient in the sum that fills a slot; the first layer is the one whose place it takes.
The coefficients add up to 1."""


Similarity = Callable[[list[LayerSum]], float]
"""Returns the cosine of a model's last hidden states with those of the dense model."""


THRESHOLDS = tuple(number / 100 for number in range(95, -101, -5))
"""The cosines that are tried, the strictest first."""


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
        """Counts what is scored: the sizes, and at most every place in every round."""
        rounds = sum(space.depth - size for size in space.sizes)
        return 1 + len(space.sizes) + len(self.merged) * len(space.removable) * rounds

    def find(self, problem: PruningProblem) -> list[Plan]:
        subject, states = problem.subject, problem.states
        if subject.member is None:
            raise ConfigError(f"laco prunes one model, and {subject.name} is a merge of several")
        dense: list[LayerSum] = [{layer: 1.0} for layer in range(subject.depth)]
        reference = plan_of(subject, dense)
        known: dict[str, float] = {}

        def similarity(sums: list[LayerSum]) -> float:
            key = repr(sums)
            if key not in known:
                candidate = problem.runner.measure(
                    plan_of(subject, sums), lambda plan: states.similarity(plan, reference)
                )
                known[key] = candidate.scores[SIMILARITY]["last layer"].mean
            return known[key]

        similarity(dense)  # whose states the others are compared with
        return [
            plan_of(subject, self._collapsed(problem.space, size, similarity)) for size in problem.space.sizes
        ]

    def _collapsed(self, space: Space, size: int, similarity: Similarity) -> list[LayerSum]:
        models = [self._reached(space, size, similarity, merged) for merged in self.merged]
        reached = [sums for sums in models if sums is not None]
        if not reached:
            raise SearchError(
                f"laco cannot collapse {space.depth} layers to {size}: it merges neighbours of one kind that "
                "may be removed, and leaves the first of them"
            )
        return max(reached, key=similarity)

    def _reached(self, space: Space, size: int, similarity: Similarity, merged: int) -> list[LayerSum] | None:
        """Returns a model of the size, by the highest threshold that gives one."""
        for passes in (1, len(space.removable)):
            for threshold in THRESHOLDS:
                sums: list[LayerSum] = [{layer: 1.0} for layer in range(space.depth)]
                for _ in range(passes):
                    for shorter in self._pass(space, sums, size, similarity, merged, threshold):
                        sums = shorter
                if len(sums) == size:
                    return sums
        return None

    def _pass(
        self,
        space: Space,
        sums: list[LayerSum],
        size: int,
        similarity: Similarity,
        merged: int,
        threshold: float,
    ) -> Iterator[list[LayerSum]]:
        """Yields the model after each merge, from the last layers down."""
        lowest, behind = min(space.removable), space.depth - 1 - max(space.removable)
        at = max(len(sums) - behind - merged, lowest)
        while at >= lowest and len(sums) > size:
            count = min(merged - 1, len(sums) - behind - 1 - at, len(sums) - size)
            shorter = collapse(sums, at, count) if count > 0 else sums
            is_allowed = count > 0 and _is_allowed(space, sums[at : at + count + 1], shorter, size)
            if is_allowed and similarity(shorter) > threshold:
                sums = shorter
                yield sums
                at = min(at - self.interval, len(sums) - behind - merged)
            else:
                at -= 1


def collapse(sums: list[LayerSum], at: int, count: int) -> list[LayerSum]:
    """Merges the `count` slots behind a slot into it: θ_at + Σ_k (θ_{at+k} − θ_at).

    >>> collapse([{0: 1.0}, {1: 1.0}, {2: 1.0}, {3: 1.0}], at=1, count=2)
    [{0: 1.0}, {1: -1.0, 2: 1.0, 3: 1.0}]
    """
    parts = [(sums[at], 1.0 - count), *((layers, 1.0) for layers in sums[at + 1 : at + count + 1])]
    total: dict[int, float] = {}
    for layers, factor in parts:
        for layer, coefficient in layers.items():
            total[layer] = total.get(layer, 0.0) + factor * coefficient
    return [*sums[:at], total, *sums[at + count + 1 :]]


def _is_allowed(space: Space, merging: list[LayerSum], shorter: list[LayerSum], size: int) -> bool:
    """Tells whether only removable layers of one kind take part, and the size can still be reached."""
    layers = {layer for sums in merging for layer in sums}
    kinds = {space.layer_kinds[layer] for layer in layers} if space.layer_kinds else {None}
    gone = set(range(space.depth)) - {next(iter(sums)) for sums in shorter}
    return layers <= set(space.removable) and len(kinds) == 1 and extends(space, gone, size)


def plan_of(subject: Subject, sums: list[LayerSum]) -> Plan:
    """Returns the plan whose slots are these sums of a member's layers."""
    (model,) = subject.sources
    return subject.plan([_slot(subject, model, layers) for layers in sums])


def _slot(subject: Subject, model: str, layers: LayerSum) -> Slot:
    """Returns Σ c_i θ_i with Σ c_i = 1 as task arithmetic: θ_b + Σ_{i≠b} c_i (θ_i − θ_b)."""
    (base, _), *others = layers.items()
    if not others:
        return subject.slot(base)
    weights = [(("weight", coefficient),) for _, coefficient in others]
    operation = Operation("task_arithmetic", ((), *weights), base=0)
    return Slot(tuple((model, layer) for layer in layers), operation)
