"""Baselines that look at the hidden states of the dense model once, and score nothing on the way."""

from __future__ import annotations

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.hidden_states import DISTANCE, INFLUENCE, Block, block_of
from gptailor_merge.search.baselines.layer_sets import LayerSet, nearest, removal
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.space.space import Space


class ShortGPT:
    """Removes the layers with the least block influence.

    X. Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, arXiv
    2403.03853: BI_i = 1 − E_{X,t} [X_{i,t} · X_{i+1,t} / (‖X_{i,t}‖ ‖X_{i+1,t}‖)], where X_{i,t} is the
    input of layer i at token t.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        return 1 + len(space.sizes)

    def find(self, problem: PruningProblem) -> list[Plan]:
        space, subject = problem.space, problem.subject
        dense = problem.runner.measure(subject.without(()), problem.states.block_influence)
        influence = {int(layer): score.mean for layer, score in dense.scores[INFLUENCE].items()}
        # Where a pattern is fixed, the removal that keeps the largest sum of influences.
        keys = [-influence[layer] for layer in range(space.depth)]
        return [subject.without(removal(space, keys, size)) for size in space.sizes]


class UIDL:
    """Removes the block of neighbouring layers that turns its input least.

    A. Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, arXiv 2403.17887: the
    block of n layers from layer l with the least d(x^(l), x^(l+n)) = arccos(x_T^(l) · x_T^(l+n) /
    (‖x_T^(l)‖ ‖x_T^(l+n)‖)) / π, where x_T^(l) is the input of layer l at the last token T of a
    sequence; mean over sequences. No healing.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        return 1 + len(space.sizes)

    def find(self, problem: PruningProblem) -> list[Plan]:
        space, subject = problem.space, problem.subject
        lengths = [space.depth - size for size in space.sizes]
        candidate = problem.runner.measure(
            subject.without(()), lambda dense: problem.states.angular_distances(dense, lengths)
        )
        distances = {block_of(name): score.mean for name, score in candidate.scores[DISTANCE].items()}
        return [subject.without(self._removed(space, distances, size)) for size in space.sizes]

    def _removed(self, space: Space, distances: dict[Block, float], size: int) -> LayerSet:
        """Returns the best block that may go whole, or as much of the best block as may go."""
        blocks = {
            block: distance
            for block, distance in distances.items()
            if block[1] - block[0] == space.depth - size
        }
        whole = {
            block: distance
            for block, distance in blocks.items()
            if nearest(space, range(*block), size) == frozenset(range(*block))
        }
        eligible = whole or blocks
        best = min(eligible, key=lambda block: (eligible[block], block))
        return nearest(space, range(*best), size)
