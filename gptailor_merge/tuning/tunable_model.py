"""A plan's model with merge weights and gains of norms that gradients reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.composing.bank import Bank
from gptailor_merge.composing.compose import Composer, set_tensor
from gptailor_merge.composing.editing import load_map, save_gains
from gptailor_merge.composing.norms import norms_of, outer_norms, with_gains
from gptailor_merge.composing.output_projections import placed
from gptailor_merge.composing.prefixes import advance
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.architecture import body_of
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.protocols import Prediction
from gptailor_merge.recipe.plan import NORMS, Edit, Plan, Slot
from gptailor_merge.scoring.passes import predictions
from gptailor_merge.tuning.embeddings_and_head import TunableComponent
from gptailor_merge.tuning.groups import Groups, Sharing, groups_of
from gptailor_merge.tuning.layers import Ingredients, TunableLayer
from gptailor_merge.tuning.start import closest_weights
from gptailor_merge.tuning.written_weights import merge_operation


class TunableModel:
    """A plan's model in which each slot merges all members, and the gains of norms are free.

    Args:
        sharing: the tensors that share a merge weight.
        norms: whether the gains of norms are fitted, too.
        outer: whether embeddings and head are merged as well, of the members whose vocabulary fits.

    Attributes:
        outer_gains: name -> the gain of a norm outside the layers.
        components: embeddings and head, where these are merged; one where they are one matrix.

    Raises:
        FamilyError: the gain of a norm is shared or absent, or there is nothing to fit.
    """

    def __init__(self, composer: Composer, plan: Plan, sharing: Sharing, *, norms: bool, outer: bool) -> None:
        self._bank: Bank = composer.bank
        self._family: Family = self._bank.family
        self._plan = plan
        self._groups: list[Groups] = []
        self._sources: list[tuple[tuple[str, int], ...]] = []
        self.model = composer.compose(plan)
        body = body_of(self.model)
        dtype = self._bank.precision.compute or next(body.layers[0].parameters()).dtype
        layers = [
            self._layer(slot, layer, sharing, dtype, norms=norms)
            for slot, layer in zip(plan.slots, body.layers, strict=True)
        ]
        body.layers = nn.ModuleList(layers)
        self.layers: list[TunableLayer] = layers
        self.outer_gains: dict[str, nn.Parameter] = {}
        if norms:
            for name in outer_norms(self._family.base.config):
                gain = self.model.get_parameter(name).detach().float().clone()
                self.outer_gains[name] = nn.Parameter(gain)
                set_tensor(self.model, name, self.outer_gains[name])
                norm, _, leaf = name.rpartition(".")
                register_parametrization(self.model.get_submodule(norm), leaf, _Rounded(dtype), unsafe=True)
        self.components = self._components(sharing, dtype) if outer else []
        for component in self.components:
            component.install(self.model, free=self.outer_gains)
        if not any(parameter.numel() for parameter in (*self.weights, *self.gains)):
            raise FamilyError(
                "there is nothing to fit: the family has no variants, and norms keep their gains"
            )

    @property
    def weights(self) -> list[nn.Parameter]:
        """Lists the merge weights of the slots, and of embeddings and head."""
        return [*(layer.weights for layer in self.layers), *(part.weights for part in self.components)]

    @property
    def gains(self) -> list[nn.Parameter]:
        """Lists the gains of all norms."""
        return [*(gain for layer in self.layers for gain in layer.gain_values), *self.outer_gains.values()]

    def predictions(self, batch: Batch) -> Iterator[Prediction]:
        """Yields what the model predicts of a batch."""
        yield from predictions(self.model, batch, self._state(batch, gradients=False))

    @contextmanager
    def differentiated(self, batch: Batch) -> Iterator[Iterator[Prediction]]:
        """Gives predictions that can be differentiated, and takes their gradients down the layers at the end.

        Some rows are predicted at a time. Whoever differentiates them one by one has no more logits in
        memory than scoring has.
        """
        state = self._state(batch, gradients=True)
        leaf = state.detach().requires_grad_()
        yield predictions(self.model, batch, leaf, gradients=True)
        if leaf.grad is not None:
            torch.autograd.backward(state, leaf.grad)

    def _state(self, batch: Batch, *, gradients: bool) -> torch.Tensor:
        """Returns the output of the last layer [sequences, length, width]."""
        last = len(self.layers) - 1
        states: list[torch.Tensor] = advance(
            self.model, batch.ids, None, range(last + 1), {last}, batch.branches, gradients=gradients
        )
        return states[0]

    def _layer(
        self, slot: Slot, layer: nn.Module, sharing: Sharing, dtype: torch.dtype, *, norms: bool
    ) -> TunableLayer:
        base_model, index = self._plan.base_model, slot.layers[0][1]
        variants = [member.model for member in self._family.members[1:]]
        sources = [(model, index) for model in variants]
        known = {(base_model, index), *sources}
        sources += [source for source in dict.fromkeys(slot.layers) if source not in known]
        base = self._bank.stored(base_model, index)
        members = tuple(self._bank.stored(*source) for source in sources)
        groups = groups_of(base, sharing)
        unedited = self._bank.layer(replace(slot, edits=())).tensors
        weights = closest_weights(unedited, base, members, groups)
        maps, zeros = {}, set()
        for edit in placed(slot.edits, self._family.base.config, index):
            if edit.edit.digest is None:
                zeros |= set(edit.names)
            elif edit.edit.is_repair:
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

    def _components(self, sharing: Sharing, dtype: torch.dtype) -> list[TunableComponent]:
        """Returns embeddings and head as merges of the members that can give both."""
        family, plan = self._family, self._plan
        donor = family.by_model(plan.tokenizer)
        fitting = [m.model for m in family.members if family.outer_problem(m, donor) is None]
        if plan.base_model not in fitting or len(fitting) == 1:
            return []
        architecture = family.base.architecture
        names = [(plan.embeddings, tuple(architecture.before)), (plan.head, tuple(architecture.after))]
        if family.tied:
            names = [(plan.embeddings, (*architecture.before, *architecture.after))]
        return [
            TunableComponent(
                self._bank,
                tuple(dict.fromkeys((*fitting, *component.models))),
                component,
                tensors,
                sharing,
                dtype,
            )
            for component, tensors in names
        ]

    def plan(self, directory: Path, name: str) -> Plan:
        """Returns the plan with the numbers as they are now.

        Args:
            directory, name: where the gains are written, if they are fitted.
        """
        tuned = replace(self._plan, slots=tuple(map(self._slot, range(len(self.layers)))))
        if self.components:
            embeddings, head = self.components[0].component, self.components[-1].component
            tuned = replace(tuned, embeddings=embeddings, head=head)
        gains = dict[str, torch.Tensor](self.outer_gains)
        for slot, layer in zip(self._plan.slots, self.layers, strict=True):
            prefix = f"layers.{slot.layers[0][1]}."
            gains |= {prefix + inner: gain for inner, gain in layer.gains.items()}
        if not gains:
            return tuned
        file, digest = save_gains(gains, directory, name)
        return with_gains(tuned, Edit(NORMS, digest, str(file)))

    def _slot(self, position: int) -> Slot:
        """Returns a slot with its merge weights as they are now."""
        slot = self._plan.slots[position]
        if not self._sources[position]:
            return slot
        base = (self._plan.base_model, slot.layers[0][1])
        operation = merge_operation(self.layers[position].weights, self._groups[position])
        return replace(slot, layers=(base, *self._sources[position]), operation=operation)


class _Rounded(nn.Module):
    """Gives a gain, which is fitted in float32, in the dtype that the model computes in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, gain: torch.Tensor) -> torch.Tensor:
        return gain.to(self._dtype)
