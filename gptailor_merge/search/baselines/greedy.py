"""Greedy removal, one layer after the other."""

from __future__ import annotations

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.search.baselines.layer_sets import LayerSet, are_targets, extends, nearest, removed_by
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.candidates import Status
from gptailor_merge.space.space import Space


class SLEB:
    """Removes the layer that hurts least, again and again, each time measured on what is left.

    J. Song et al., SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer
    Blocks, arXiv 2402.09025 (its third metric), with the config's objectives in the place of the loss on
    WikiText-2. The paper protects the first and the last block, as `operations.protect` does.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        rounds = space.depth - min(space.sizes)
        return sum(len(space.removable) - number for number in range(rounds))

    def find(self, problem: PruningProblem) -> list[Plan]:
        space, subject = problem.space, problem.subject
        smallest = min(space.sizes)
        removed: LayerSet = frozenset()
        removals: dict[int, LayerSet] = {}
        while space.depth - len(removed) > smallest:
            size = space.depth - len(removed) - 1
            wider = [removed | {layer} for layer in space.removable if layer not in removed]
            # Where a pattern is fixed, only what still leads to it.
            wider = [layers for layers in wider if extends(space, layers, smallest)]
            candidates = problem.runner.score(
                [subject.without(layers) for layers in wider],
                status=Status.SCORED if are_targets(space, wider) else Status.PROBE,
            )
            removed = removed_by(space, problem.best(candidates).plan)
            if size in space.sizes:
                removals[size] = nearest(space, removed, size)
        return [subject.without(removals[size]) for size in space.sizes]
