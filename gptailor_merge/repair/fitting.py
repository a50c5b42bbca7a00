"""Repairs the cuts of plans: fits a map at each, chooses its ridge, and keeps it if it helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.held_back import divided
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.editing import save_map
from gptailor_merge.composing.output_projections import placed
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.scores import Score
from gptailor_merge.recipe.plan import MLP, Edit, Plan
from gptailor_merge.repair.cuts import Cut, cuts_of, dense, with_edit
from gptailor_merge.repair.regression import Climb, Moments
from gptailor_merge.repair.states import DenseStates
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.time_left import StepClock

RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0)
"""Strengths of the ridge that are tried, see repair.regression."""


BATCH_TOKENS = 4096


LOSS_TOKENS = 8192
"""Tokens at most, of those that are not fitted to, whose loss tells whether a map helps."""


LEAST_GAIN = 1e-3
"""Nats per token below which the slots up to the next cut are left alone."""


MAP_PATTERN = "repair-*.safetensors"
"""The names of the files of maps."""


@dataclass(frozen=True)
class CutRepair:
    """Says how a cut was repaired, or why not.

    Attributes:
        slot: the slot before the cut, whose MLP is multiplied with the map.
        removed: the layers that are missing, [first, past the last).
        ridge: the chosen strength; None where no map made the model better.
        before, after: nats per token on the sequences that were not fitted to.
        note: why the cut could not be repaired.
    """

    slot: int
    removed: tuple[int, int]
    ridge: float | None = None
    before: float | None = None
    after: float | None = None
    note: str | None = None

    @property
    def gain(self) -> float:
        """The nats per token by which the map lowers the loss."""
        return 0.0 if self.before is None or self.after is None else self.before - self.after

    @classmethod
    def impossible(cls, cut: Cut, note: str | None) -> CutRepair:
        """Describes a cut that could not be repaired."""
        return cls(cut.slot, (cut.removed.start, cut.removed.stop), note=note)


class Repairer:
    """Repairs plans of one family with maps that are fitted to the same texts.

    Args:
        sets: the texts; every fourth sequence chooses the ridge, and some of these tell whether a map helps.
        plans: those that will be repaired; the base's states behind their cuts are computed once.
        everywhere: tries also the places behind slots where no layer is missing.

    Attributes:
        tokens: the number of tokens in the texts; as many go through the base, once for all plans.
        spent: tokens that have gone through plans' models, or through a part of one.

    Raises:
        DataError: too few sequences to choose a ridge on.
    """

    def __init__(
        self,
        composer: Composer,
        family: Family,
        sets: Sequence[TokenSet],
        plans: Sequence[Plan],
        *,
        everywhere: bool,
    ) -> None:
        fitted, held_back = divided(sets)
        self.tokens = _tokens(sets)
        self.spent = 0
        self._composer, self._family, self._everywhere = composer, family, everywhere
        share = min(1.0, LOSS_TOKENS / _tokens(held_back))
        rungs = self._layout(held_back, (share, 1.0))
        (fitted_batches,) = self._layout(fitted, (1.0,))
        self._texts = [
            (batches, self._dense(plans, batches)) for batches in (fitted_batches, [*rungs[0], *rungs[1]])
        ]
        self._passes = Passes([Perplexity("nll", tuple(held_back))], rungs[:1], (share,))

    def repair(
        self, plan: Plan, directory: Path, progress: Callable[[str], None] = lambda step: None
    ) -> tuple[Plan, tuple[CutRepair, ...]]:
        """Returns the plan with a map at each place where one helps, and what became of the places tried.

        A place where no layer is missing is tried if the map at the place before it gains LEAST_GAIN.

        Args:
            directory: where the maps are written.
            progress: told which cut is being repaired.
        """
        cuts = cuts_of(plan, self._family.depth, everywhere=self._everywhere)
        fitted, held_back = (Climb(self._composer, batches, dense) for batches, dense in self._texts)
        loss: float | None = None
        repairs: list[CutRepair] = []
        worthwhile = True
        clock = StepClock(0, len(cuts))
        for number, cut in enumerate(cuts):
            if not (cut.removed or worthwhile):
                continue
            note = _obstacle(plan, cut, self._family.base.config)
            if note is not None:
                repairs.append(CutRepair.impossible(cut, note))
                continue
            progress(f"repairing behind slot {cut.slot}{_missing(cut)}{clock.left(number)}")
            moments, check = fitted.moments(plan, cut), held_back.moments(plan, cut)
            if loss is None:
                self.spent += self.tokens
                loss = self._loss(plan, held_back)
            plan, repair = self._repair_cut(plan, cut, loss, moments, check, held_back, directory)
            repairs.append(repair)
            worthwhile = repair.gain >= LEAST_GAIN
            loss = repair.after
        return plan, tuple(repairs)

    def _repair_cut(
        self,
        plan: Plan,
        cut: Cut,
        loss: float,
        moments: Moments,
        check: Moments,
        held_back: Climb,
        directory: Path,
    ) -> tuple[Plan, CutRepair]:
        """Fits maps at a cut and keeps the best one if it lowers the loss."""
        maps = {ridge: moments.solve(ridge) for ridge in RIDGES}
        best = min(RIDGES, key=lambda ridge: check.error(maps[ridge]))
        removed = (cut.removed.start, cut.removed.stop)
        after = self._loss(_with_map(plan, cut, maps[best], directory), held_back)
        if not after < loss:
            _map_file(cut, directory).unlink()
            return plan, CutRepair(cut.slot, removed, None, loss, loss)
        # The map that is kept has the chosen strength and is fitted to all sequences.
        final = _with_map(plan, cut, (moments + check).solve(best), directory)
        return final, CutRepair(cut.slot, removed, best, loss, after)

    def _dense(self, plans: Sequence[Plan], batches: Sequence[Batch]) -> DenseStates:
        depth = self._family.depth
        cuts = (cut for plan in plans for cut in cuts_of(plan, depth, everywhere=self._everywhere))
        base = dense(self._family.base.model, depth)
        return DenseStates(self._composer, base, batches, {cut.removed.stop - 1 for cut in cuts})

    def _layout(self, sets: Sequence[TokenSet], shares: Sequence[float]) -> list[list[Batch]]:
        return layout(sets, BATCH_TOKENS, device=self._composer.device, rungs=shares)

    def _loss(self, plan: Plan, climb: Climb) -> float:
        """Returns the nats per token on sequences that were not fitted to; runs what is above the climb."""
        self.spent += self._passes.tokens
        measured = self._passes.measure_with(climb.forward(plan))
        (by_set,) = self._passes.scores(measured).values()
        return Score.total(list(by_set.values())).mean


def _tokens(sets: Sequence[TokenSet]) -> int:
    return sum(token_set.tokens for token_set in sets)


def _missing(cut: Cut) -> str:
    """Says how many layers are missing behind a slot, as the end of a clause; nothing where none is."""
    count = len(cut.removed)
    layers = f"{count} layers are" if count > 1 else "1 layer is"
    return f", where {layers} missing" if count else ""


def _obstacle(plan: Plan, cut: Cut, config: Mapping[str, Any]) -> str | None:
    """Returns why a cut cannot have a map, or None where it can."""
    if Edit(MLP) in plan.slots[cut.slot].edits:
        return "the layer before it is without its MLP"
    try:
        placed([Edit(MLP, "any")], config, plan.kept[cut.slot])
    except FamilyError as error:
        return str(error)
    return None


def _map_file(cut: Cut, directory: Path) -> Path:
    return directory / MAP_PATTERN.replace("*", str(cut.slot))


def _with_map(plan: Plan, cut: Cut, matrix: torch.Tensor, directory: Path) -> Plan:
    file, digest = save_map(matrix, directory, _map_file(cut, directory).name)
    return with_edit(plan, cut.slot, Edit(MLP, digest, str(file)))
