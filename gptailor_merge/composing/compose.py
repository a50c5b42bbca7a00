"""A plan becomes a live transformers model that shares the bank's tensors."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from gptailor_merge.composing.bank import Bank, Layer
from gptailor_merge.models.architecture import INDEX_NAMES, layers_of, tokens_of
from gptailor_merge.models.depth import changes
from gptailor_merge.recipe.plan import SELECT, Operation, Plan

M = TypeVar("M", bound=nn.Module)


Component = tuple[tuple[str, ...], Operation]
"""The models that embeddings or head come from, and how they are merged; see Plan."""


class Composer:
    """Makes models of plans. Selecting a layer copies nothing; the model's own forward runs.

    Composed models share modules and tensors with each other: run them, do not train them.
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
        self._layers = layers_of(self._template)
        body = self._template.base_model
        self._body_name = next(n for n, m in self._template.named_modules() if m is body)
        self._shells: dict[tuple[Component, Component], PreTrainedModel] = {}
        self._generation: dict[str, GenerationConfig] = {}

    @property
    def device(self) -> torch.device:
        """Where models run."""
        return self._bank.device

    @property
    def streams(self) -> bool:
        """Whether layers are brought to the device one by one, see Bank."""
        return self._bank.on_host

    def compose(self, plan: Plan, only: Container[int] | None = None) -> PreTrainedModel:
        """The model that a plan describes.

        Args:
            only: positions that are filled; the other layers have no weights and cannot run.
        """
        modules = [
            self._module(self._bank.layer(slot), slot.layers[0][1], position)
            if only is None or position in only
            else self._layers[slot.layers[0][1]]
            for position, slot in enumerate(plan.slots)
        ]
        shell = self._shell(plan.embeddings, plan.head)
        model = _shallow_copy(shell)
        config = copy.copy(self._config)
        for key, value in self._changes(plan).items():
            setattr(config, key, value)
        body = _own(model, self._body_name)
        body.layers = nn.ModuleList(modules)
        for part in (model, body):
            part.config = config
        model.generation_config = self._generation_config(plan, config)
        return model

    def _generation_config(self, plan: Plan, config: PreTrainedConfig) -> GenerationConfig:
        """What from_pretrained finds in the written model: that of the tokenizer's donor, or the config's."""
        if plan.tokenizer not in self._generation:
            directory = self._bank.family.by_model(plan.tokenizer).directory
            self._generation[plan.tokenizer] = (
                GenerationConfig.from_pretrained(directory)
                if (directory / "generation_config.json").is_file()
                else GenerationConfig.from_model_config(config)
            )
        return self._generation[plan.tokenizer]

    def _changes(self, plan: Plan) -> dict[str, Any]:
        """What the config of a plan's model says differently from the base's."""
        family = self._bank.family
        donor = {} if plan.tokenizer == plan.base_model else family.by_model(plan.tokenizer).config
        return {**changes(family.base.config, plan.kept), **tokens_of(donor)}

    def _shell(self, embeddings: Component, head: Component) -> PreTrainedModel:
        """The template with embeddings, final norm and head; its layers are still empty."""
        key = (embeddings, head)
        model = self._shells.get(key)
        if model is None:
            model = _shallow_copy(self._template)
            self._set_outer(model, embeddings, self._bank.family.base.architecture.before)
            self._set_outer(model, head, self._bank.family.base.architecture.after)
            if self._bank.family.tied:
                output = model.get_output_embeddings()
                weight = model.get_input_embeddings().weight
                model.set_output_embeddings(_with_parameter(output, "weight", weight))
            # Merges are without end; what they hold is the bank's to keep or to drop.
            if all(operation.method == SELECT for _, operation in key):
                self._shells[key] = model
        return model

    def _module(self, layer: Layer, source_index: int, position: int) -> nn.Module:
        if position not in layer.modules:
            module = _copy_tree(self._layers[source_index])
            _fill(module, layer.tensors)
            for part in module.modules():
                for name in INDEX_NAMES & vars(part).keys():
                    setattr(part, name, position)
            layer.modules[position] = module
        return layer.modules[position]

    def _set_outer(self, model: nn.Module, component: Component, names: Iterable[str]) -> None:
        models, operation = component
        for name in names:
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


def _copy_tree(module: M) -> M:
    """A module whose submodules, too, are shallow copies; configs and tensors are shared."""
    clone = _shallow_copy(module)
    for name, child in clone._modules.items():
        if child is not None:
            clone._modules[name] = _copy_tree(child)
    return clone


def _fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> None:
    """Set all that a tree of copies saves; load_state_dict does it too, ten times slower."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(tensors[prefix + name], requires_grad=False)
    for name in module._buffers.keys() - module._non_persistent_buffers_set:
        module._buffers[name] = tensors[prefix + name]
    for name, child in module._modules.items():
        if child is not None:
            _fill(child, tensors, f"{prefix}{name}.")


def _own(model: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`, after making it and what lies on the way the model's own.

    `model` itself must be a copy already. What another model holds stays as it is.
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
