"""A plan's model with merge weights and gains of norms that gradients reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.bank import Bank
from gptailor_merge.composing.compose import Composer, set_parameter
from gptailor_merge.composing.editing import load_map
from gptailor_merge.composing.exits import placed
from gptailor_merge.composing.norms import norms_of, outer_norms
from gptailor_merge.composing.prefixes import advance
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.protocols import Prediction
from gptailor_merge.recipe.plan import Operation, Plan, Slot
from gptailor_merge.scoring.passes import predictions
from gptailor_merge.tune.groups import Groups, Sharing, groups_of
from gptailor_merge.tune.layers import Ingredients, TunableLayer
from gptailor_merge.tune.start import closest_weights

METHOD = "task_arithmetic"
"""The merge method of tuned slots."""


DECIMALS = 5
"""Merge weights are rounded to this many decimals, so that recipes can be read."""


@dataclass(frozen=True)
class Tunables:
    """The numbers that are fitted, as they stand at some step.

    Attributes:
        weights: for each slot [groups, members].
        gains: name in the tailored model's plan, see slot_gain -> the gain of a norm.
    """

    weights: tuple[torch.Tensor, ...]
    gains: Mapping[str, torch.Tensor]


class TunableModel:
    """A plan's model in which each slot merges all members, and the gains of norms are free.

    Args:
        sharing: the tensors that share a merge weight.
        norms: whether the gains of norms are fitted, too.

    Raises:
        FamilyError: the gain of a norm is shared or absent.
    """

    def __init__(self, composer: Composer, plan: Plan, sharing: Sharing, *, norms: bool) -> None:
        self._bank: Bank = composer.bank
        self._family: Family = self._bank.family
        self._plan = plan
        self._groups: list[Groups] = []
        self._sources: list[tuple[tuple[str, int], ...]] = []
        self.model = composer.compose(plan)
        body = self.model.base_model
        dtype = self._bank.precision.compute or next(body.layers[0].parameters()).dtype
        layers = [
            self._layer(slot, layer, sharing, dtype, norms=norms)
            for slot, layer in zip(plan.slots, body.layers, strict=True)
        ]
        body.layers = nn.ModuleList(layers)
        self.layers: list[TunableLayer] = layers
        self.outer: dict[str, nn.Parameter] = {}
        if norms:
            for name in outer_norms(self._family.base.config):
                gain = self._bank.outer(plan.head.models, plan.head.operation, name)
                self.outer[name] = nn.Parameter(gain.float().clone())
                set_parameter(self.model, name, self.outer[name])

    @property
    def weights(self) -> list[nn.Parameter]:
        """Lists the merge weights of the slots."""
        return [layer.weights for layer in self.layers]

    @property
    def gains(self) -> list[nn.Parameter]:
        """Lists the gains of all norms."""
        return [*(gain for layer in self.layers for gain in layer.gain_values), *self.outer.values()]

    def predictions(self, batch: Batch, *, gradients: bool) -> Iterator[Prediction]:
        """Yields what the model predicts of a batch."""
        depth = len(self.layers)
        (state,) = advance(
            self.model, batch.ids, None, range(depth), {depth - 1}, batch.branches, gradients=gradients
        )
        yield from predictions(self.model, batch, state, gradients=gradients)

    def _layer(
        self, slot: Slot, layer: nn.Module, sharing: Sharing, dtype: torch.dtype, *, norms: bool
    ) -> TunableLayer:
        base_model, index = self._plan.base_model, slot.layers[0][1]
        variants = [member.model for member in self._family.members[1:]]
        sources = [(model, index) for model in variants]
        sources += [source for source in slot.layers if source not in sources and source != (base_model, index)]
        base = self._bank.stored(base_model, index)
        members = tuple(self._bank.stored(*source) for source in sources)
        groups = groups_of(base, sharing)
        unedited = self._bank.layer(replace(slot, edits=())).tensors
        weights = closest_weights(unedited, base, members, groups)
        maps, zeros = {}, set()
        for edit in placed(slot.edits, self._family.base.config, index):
            if edit.edit.digest is None:
                zeros |= set(edit.names)
            else:
                matrix = load_map(edit.edit.file, edit.edit.digest)
                maps.update(dict.fromkeys(edit.names, matrix.float().to(self._bank.device)))
        now = self._bank.layer(slot).tensors
        names = norms_of(self._family.base.config, index) if norms else ()
        gains = {name: now[name].float().clone() for name in names}
        self._groups.append(groups)
        self._sources.append(tuple(sources))
        return TunableLayer(
            layer,
            Ingredients(base, members, maps, frozenset(zeros)),
            groups,
            weights.to(self._bank.device),
            gains,
            dtype,
        )

    def slots(self) -> list[Slot]:
        """Returns the slots with the merge weights as they are now, without their gains."""
        slots = []
        for slot, layer, groups, sources in zip(
            self._plan.slots, self.layers, self._groups, self._sources, strict=True
        ):
            by_member = layer.weights.detach().cpu().T.tolist()
            inputs = [
                (("weight", groups.setting([round(value, DECIMALS) for value in values])),)
                for values in by_member
            ]
            base = (self._plan.base_model, slot.layers[0][1])
            operation = Operation(METHOD, ((), *inputs), base=0)
            slots.append(replace(slot, layers=(base, *sources), operation=operation))
        return slots
