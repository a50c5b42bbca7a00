"""A plan becomes a live transformers model that shares the bank's tensors."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gptailor_merge.composing.bank import Bank, Layer
from gptailor_merge.errors import FamilyError
from gptailor_merge.mergekit_plugin import Operation, outer_weights
from gptailor_merge.recipe.operations import Plan

M = TypeVar("M", bound=nn.Module)


class Composer:
    """Makes models of plans. Selecting a layer copies nothing; the model's own forward runs.

    Composed models share modules and tensors with each other: run them, do not train them.

    Raises:
        FamilyError: an architecture whose model has no list `layers`, or whose checkpoint does not
            hold the tensors that its layers run with.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        base = bank.family.base
        self._config = AutoConfig.from_pretrained(base.directory, trust_remote_code=False)
        # Parameters stay on the meta device, buffers (rotary frequencies) are computed.
        with init_empty_weights(include_buffers=False):
            self._template: PreTrainedModel = AutoModelForCausalLM.from_config(self._config)
        self._template.eval().requires_grad_(False)
        for module in self._template.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(bank.device)
        body = self._template.base_model
        layers = getattr(body, "layers", None)
        if not isinstance(layers, nn.ModuleList) or len(layers) != base.depth:
            raise FamilyError(f"{base.model}: {type(body).__name__} has no list `layers` to replace")
        self._layers = layers
        self._body_name = next(n for n, m in self._template.named_modules() if m is body)
        self._before, self._after = outer_weights(self._config)

    def compose(self, plan: Plan) -> PreTrainedModel:
        """The model that a plan describes."""
        modules = [
            self._module(self._bank.layer(slot), slot.layers[0][1], position)
            for position, slot in enumerate(plan.slots)
        ]
        model = _shallow_copy(self._template)
        config = copy.copy(self._config)
        config.num_hidden_layers = len(modules)
        body = _own(model, self._body_name)
        body.layers = nn.ModuleList(modules)
        for part in (model, body):
            part.config = config
        self._set_outer(model, plan.embeddings, self._before)
        self._set_outer(model, plan.head, self._after)
        if self._bank.family.tied:
            head = model.get_output_embeddings()
            model.set_output_embeddings(_with_parameter(head, "weight", model.get_input_embeddings().weight))
        meta = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if meta:
            raise FamilyError(f"{self._bank.family.base.model}: the checkpoint has no tensor {meta[0]}")
        return model

    def _module(self, layer: Layer, source_index: int, position: int) -> nn.Module:
        if position not in layer.modules:
            module = copy.deepcopy(self._layers[source_index])
            wanted = module.state_dict().keys()
            missing = sorted(set(wanted) - set(layer.tensors))
            if missing:
                raise FamilyError(
                    f"{self._bank.family.base.model}: the checkpoint has no tensor {missing[0]} for layer "
                    f"{source_index}; this architecture stores its layers differently from how it runs them"
                )
            module.load_state_dict({name: layer.tensors[name] for name in wanted}, assign=True)
            for part in module.modules():
                if hasattr(part, "layer_idx"):
                    setattr(part, "layer_idx", position)  # noqa: B010 - typed as Tensor | Module
            layer.modules[position] = module.eval().requires_grad_(False)
        return layer.modules[position]

    def _set_outer(
        self, model: nn.Module, component: tuple[tuple[str, ...], Operation], names: tuple[str, ...]
    ) -> None:
        models, operation = component
        present = set(self._bank.family.base.headers)
        for name in names:
            if name in present:
                tensor = self._bank.outer(models, operation, name)
                path, _, leaf = name.rpartition(".")
                parent, _, child = path.rpartition(".")
                owner = _own(model, parent)
                setattr(owner, child, _with_parameter(getattr(owner, child), leaf, tensor))


def _shallow_copy(module: M) -> M:
    """A module with its own tables of parameters, buffers and children, all entries shared."""
    clone = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        clone.__dict__[table] = dict(clone.__dict__[table])
    return clone


def _own(model: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`, after making it and what lies on the way the model's own.

    `model` itself must be a copy already; a second call for the same path changes nothing bad.
    """
    for name in path.split(".") if path else ():
        child = _shallow_copy(cast(nn.Module, getattr(model, name)))
        setattr(model, name, child)
        model = child
    return model


def _with_parameter(module: nn.Module, name: str, tensor: torch.Tensor) -> nn.Module:
    clone = _shallow_copy(module)
    parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    setattr(clone, name, parameter)
    return clone
