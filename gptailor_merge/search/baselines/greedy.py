"""Greedy removal, one layer after the other."""

from __future__ import annotations

from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.search.baselines.problem import Problem, extends, nearest, removed_by
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

    def find(self, problem: Problem) -> list[Recipe]:
        space, subject = problem.space, problem.subject
        smallest = min(space.sizes)
        removed: frozenset[int] = frozenset()
        found: dict[int, frozenset[int]] = {}
        while space.depth - len(removed) > smallest:
            size = space.depth - len(removed) - 1
            wider = [removed | {layer} for layer in space.removable if layer not in removed]
            # Where a pattern is fixed, only what still leads to it.
            wider = [one for one in wider if extends(space, one, smallest)]
            is_target = size in space.sizes and all(nearest(space, one, size) == one for one in wider)
            finished = problem.run.score(
                [subject.without(one) for one in wider], status=Status.SCORED if is_target else Status.PROBE
            )
            removed = removed_by(space, problem.best(finished).parsed)
            if size in space.sizes:
                found[size] = nearest(space, removed, size)
        return [subject.without(found[size]) for size in space.sizes]
