"""Composes live transformers models from plans; they share the bank's tensors."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from gptailor_merge.composing.bank import Bank, Layer
from gptailor_merge.composing.editing import Placed
from gptailor_merge.composing.output_projections import placed
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.architecture import INDEX_NAMES, body_of, tokens_of
from gptailor_merge.models.configs import build, load_config
from gptailor_merge.models.depth import changes
from gptailor_merge.models.nesting import copied_with_text
from gptailor_merge.models.stranger_files import read_object
from gptailor_merge.recipe.plan import SELECT, Component, Plan

M = TypeVar("M", bound=nn.Module)


class Composer:
    """Composes models from plans; a selected layer is not copied, and the model's own forward runs.

    Composed models share modules and tensors with each other: run them, do not train them.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        base = bank.family.base
        self._config = load_config(base.directory)
        # Parameters stay on the meta device; buffers (rotary frequencies) are computed.
        with init_empty_weights(include_buffers=False):
            self._template: PreTrainedModel = build(self._config)
        self._template.eval().requires_grad_(False)
        for module in self._template.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(bank.device)
        body = body_of(self._template)
        self._layers = body.layers
        self._body_name = next(n for n, m in self._template.named_modules() if m is body)
        self._shells: dict[tuple[Component, ...], PreTrainedModel] = {}
        self._generation: dict[str, GenerationConfig] = {}

    @property
    def bank(self) -> Bank:
        """The family's weights."""
        return self._bank

    @property
    def device(self) -> torch.device:
        """The device that models run on."""
        return self._bank.device

    @property
    def streams(self) -> bool:
        """True if layers are moved to the device one by one, see Bank."""
        return self._bank.on_host

    @property
    def state_bytes(self) -> int:
        """The bytes of one token's hidden state."""
        width = int(self._template.get_input_embeddings().weight.shape[-1])
        return width * (self._bank.precision.compute or torch.float32).itemsize

    def compose(self, plan: Plan, only: Container[int] | None = None) -> PreTrainedModel:
        """Returns the model that a plan describes.

        Args:
            only: the positions to fill; the other layers have no weights and cannot run. None fills all.
        """
        modules = [
            self._module(self._bank.layer(slot), slot.layers[0][1], position)
            if only is None or position in only
            else self._layers[slot.layers[0][1]]
            for position, slot in enumerate(plan.adapted_slots)
        ]
        model = _shallow_copy(self._shell(plan))
        config = self._pruned_config(plan)
        whole = model.config
        body = _unshared(model, self._body_name)
        body.layers = nn.ModuleList(modules)
        for part in _path(model, self._body_name):
            # Modules between the two may have configs of their own, which state no depth.
            if getattr(part, "config", None) is whole:
                part.config = config
        body.config = text = config.get_text_config()
        for key in changes(self._bank.family.base.text_config, plan.kept).keys() & vars(body).keys():
            setattr(body, key, getattr(text, key))
        model.generation_config = self._generation_config(plan, config)
        return model

    def _generation_config(self, plan: Plan, config: PreTrainedConfig) -> GenerationConfig:
        """Returns what from_pretrained finds in the written model: the tokenizer donor's, or the config's."""
        if plan.tokenizer not in self._generation:
            directory = self._bank.family.by_model(plan.tokenizer).directory
            file = directory / "generation_config.json"
            try:
                if file.is_file():
                    read_object(file)
                    loaded = GenerationConfig.from_pretrained(directory)
                else:
                    loaded = GenerationConfig.from_model_config(config)
            except (OSError, ValueError, TypeError) as error:
                raise FamilyError(f"{file}: cannot be read: {error}") from None
            self._generation[plan.tokenizer] = loaded
        return self._generation[plan.tokenizer]

    def _pruned_config(self, plan: Plan) -> PreTrainedConfig:
        """Returns the config of a plan's model; see architecture.pruned, which does the same to documents."""
        family = self._bank.family
        donor = family.by_model(plan.tokenizer)
        tokens, of_whole = (
            ({}, {}) if donor is family.base else (tokens_of(donor.text_config), tokens_of(donor.config))
        )
        config = copied_with_text(
            self._template.config, {**changes(family.base.text_config, plan.kept), **tokens}
        )
        for key, value in of_whole.items():
            setattr(config, key, value)
        return config

    def _shell(self, plan: Plan) -> PreTrainedModel:
        """Returns the template with all tensors outside the layers; its layers are empty."""
        key = (plan.rest_component, plan.embeddings, plan.head)
        model = None if plan.outer_edits else self._shells.get(key)
        if model is None:
            model = _shallow_copy(self._shell_with_rest(plan.rest_component))
            base = self._bank.family.base
            edits = placed(plan.outer_edits, base.config, None)
            self._set_outer(model, plan.embeddings, base.architecture.before, edits)
            self._set_outer(model, plan.head, base.architecture.after, edits)
            if self._bank.family.tied:
                output = model.get_output_embeddings()
                weight = model.get_input_embeddings().weight
                model.set_output_embeddings(_with_tensor(output, "weight", weight))
            # Merges and edits are not cached here: there are endlessly many, and the bank has their tensors.
            if not edits and all(component.operation.method == SELECT for component in key):
                self._shells[key] = model
        return model

    def _shell_with_rest(self, rest: Component) -> PreTrainedModel:
        """Returns the template with the tensors that do not belong to the language model."""
        architecture = self._bank.family.base.architecture
        if not architecture.rest:
            return self._template
        model = self._shells.get((rest,))
        if model is None:
            model = _shallow_copy(self._template)
            self._set_outer(model, rest, architecture.rest, ())
            if rest.operation.method == SELECT:
                self._shells[(rest,)] = model
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

    def _set_outer(
        self, model: nn.Module, component: Component, names: Iterable[str], edits: Sequence[Placed]
    ) -> None:
        models, operation = component
        for name in names:
            set_tensor(model, name, self._bank.outer(models, operation, name, edits))


def set_tensor(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Gives a composed model a parameter or buffer of its own; models that shared the old one keep it.

    Args:
        name: as state_dict has it.
        tensor: a parameter, or a tensor that becomes one without a gradient.
    """
    path, _, leaf = name.rpartition(".")
    if not path:  # a tensor of the model itself
        model.__dict__.update(_with_tensor(model, leaf, tensor).__dict__)
        return
    parent, _, child = path.rpartition(".")
    owner = _unshared(model, parent)
    setattr(owner, child, _with_tensor(getattr(owner, child), leaf, tensor))


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Gives a composed model a submodule of its own; models that shared the old one keep it."""
    parent, _, name = path.rpartition(".")
    setattr(_unshared(model, parent), name, module)


def _shallow_copy(module: M) -> M:
    """Copies a module's tables of parameters, buffers and children; the entries are shared."""
    clone = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        clone.__dict__[table] = dict(clone.__dict__[table])
    return clone


def _copy_tree(module: M) -> M:
    """Copies a module and its submodules; configs and tensors are shared."""
    clone = _shallow_copy(module)
    for name, child in clone._modules.items():
        if child is not None:
            clone._modules[name] = _copy_tree(child)
    return clone


def _fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> None:
    """Sets all parameters and saved buffers of a tree of copies, ten times faster than load_state_dict."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(tensors[prefix + name], requires_grad=False)
    for name in module._buffers.keys() - module._non_persistent_buffers_set:
        module._buffers[name] = tensors[prefix + name]
    for name, child in module._modules.items():
        if child is not None:
            _fill(child, tensors, f"{prefix}{name}.")


def _unshared(model: nn.Module, path: str) -> nn.Module:
    """Returns the submodule at `path`, after replacing it and its parents by copies.

    `model` must be a copy already; models that shared these submodules keep theirs.
    """
    for name in path.split(".") if path else ():
        child = _shallow_copy(cast(nn.Module, getattr(model, name)))
        setattr(model, name, child)
        model = child
    return model


def _path(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """Yields a model and the modules on the way to the submodule at `path`, which is the last."""
    yield model
    for name in path.split(".") if path else ():
        model = cast(nn.Module, getattr(model, name))
        yield model


def _with_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> nn.Module:
    clone = _shallow_copy(module)
    if name in clone._buffers:
        clone._buffers[name] = tensor
        return clone
    parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    setattr(clone, name, parameter)
    return clone
