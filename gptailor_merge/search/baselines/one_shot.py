"""Removes each layer once, and then together those that cost least alone."""

from __future__ import annotations

from gptailor_merge.recipe.plan import Plan
from gptailor_merge.search.baselines.layer_sets import removal
from gptailor_merge.search.baselines.protocol import PruningProblem
from gptailor_merge.search.baselines.subject import Subject
from gptailor_merge.search.candidates import Status
from gptailor_merge.space.space import Space


class OneShot:
    """One-shot removal by the loss of the model without each layer alone.

    B.-K. Kim et al., Shortened LLaMA, arXiv 2402.02834, with the config's objectives in the place of
    perplexity.
    """

    in_space = True

    def candidates(self, space: Space, budget: int) -> int:
        return len(space.removable) + len(space.sizes)

    def probes(self, space: Space, subject: Subject) -> list[Plan]:
        """Returns the model without each of the layers that may be removed."""
        return [subject.without({layer}) for layer in space.removable]

    def find(self, problem: PruningProblem) -> list[Plan]:
        space, subject = problem.space, problem.subject
        probes = problem.runner.score(self.probes(space, subject), status=Status.PROBE)
        # A layer without which nothing could be scored is kept if possible.
        losses = {
            layer: candidate.loss
            for layer, candidate in zip(space.removable, probes, strict=True)
            if candidate.loss is not None
        }
        dearest_first = sorted(
            range(space.depth), key=lambda layer: (losses.get(layer, float("inf")), layer), reverse=True
        )
        keys = [0.0] * space.depth
        for rank, layer in enumerate(dearest_first):
            keys[layer] = float(rank)
        return [subject.without(removal(space, keys, size)) for size in space.sizes]
