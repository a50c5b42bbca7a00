"""Tells mergekit what a tailored model looks like: its tensors and its config.

mergekit 0.1.5 knows architectures from lists of its own, which say that all layers hold the same
tensors, and writes the base's config with another number of layers. Neither holds for models whose
layers differ. `register` has `mergekit.merge` ask us instead, for configurations of the method
`tailor` only; all others pass untouched.
"""

from __future__ import annotations

from typing import Any, NoReturn

import click
import mergekit.merge
from mergekit.architecture.base import ModelArchitecture, ModuleArchitecture, ModuleDefinition, WeightInfo
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registry
from transformers import PreTrainedConfig

from gptailor_merge.composing.editing import from_json, to_json
from gptailor_merge.composing.exits import placed
from gptailor_merge.errors import InputError, Problem, RecipeError
from gptailor_merge.host.lowering import config_base
from gptailor_merge.host.method import EDITS, TailorMethod
from gptailor_merge.models.architecture import Architecture, Shape, pruned, shifted, unlike
from gptailor_merge.recipe.recipe import TAILOR


class TailorModule(ModuleArchitecture):  # type: ignore[misc]  # mergekit has no types
    """The tensors of a model as transformers builds it from a config, layer by layer."""

    def pre_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """The embeddings."""
        own = _of(config)
        return [_weight(name, shape, own, config) for name, shape in own.before.items()]

    def layer_weights(self, index: int, config: PreTrainedConfig) -> list[WeightInfo]:
        """The tensors of one layer; layers of one kind list them in the same order."""
        own = _of(config)
        return [_weight(f"{own.prefix}{index}.{n}", s, own, config) for n, s in own.layers[index].items()]

    def post_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """Final norm and head."""
        own = _of(config)
        return [_weight(name, shape, own, config) for name, shape in own.after.items()]


def register() -> None:
    """Make `tailor` known to mergekit; a second call does nothing."""
    if TAILOR in {method.spec.name for method in registry.registered_methods()}:
        return
    registry.register(TailorMethod())
    architecture_of, config_of = mergekit.merge.get_architecture_info, mergekit.merge._model_out_config

    def get_architecture_info(config: MergeConfiguration, options: Any) -> ModelArchitecture:
        if config.merge_method != TAILOR:
            return architecture_of(config, options)
        adapted = [str(model) for model in config.referenced_models() if model.lora]
        if adapted and not options.lora_merge_cache:
            text = f"mergekit merges {adapted[0]} only with --lora-merge-cache DIR; gptailor merge needs none"
            refuse(RecipeError(text))
        _place_edits(config)
        module = ModuleDefinition(architecture=TailorModule())
        return ModelArchitecture(modules={"default": module}, architectures=[], model_type="")

    def model_out_config(config: MergeConfiguration, *arguments: Any, **named: Any) -> PreTrainedConfig:
        if config.merge_method != TAILOR:
            return config_of(config, *arguments, **named)
        donor = config.base_model
        base = _config_model(config)
        result = config_of(config.model_copy(update={"base_model": base}), *arguments, **named)
        own = base.config().to_dict()
        # The first and the last slice hold no layers, see lowering.py.
        slots = [[(str(s.model), s.layer_range[0]) for s in part.sources] for part in config.slices[1:-1]]
        kept = [sources[0][1] for sources in slots]
        _check(own, slots, kept)
        for key, value in pruned(own, kept, donor.config().to_dict()).items():
            if own.get(key) != value:
                setattr(result, key, value)
        return result

    mergekit.merge.get_architecture_info = get_architecture_info
    mergekit.merge._model_out_config = model_out_config


def _config_model(config: MergeConfiguration) -> ModelReference:
    return ModelReference.model_validate(config_base(config.parameters) or config.base_model)


def _place_edits(config: MergeConfiguration) -> None:
    """Tell each edit its tensors, which takes the config of a model that may have come just now."""
    own: dict[str, Any] | None = None
    for part in config.slices or ():
        if EDITS in (part.parameters or {}):
            own = own or _config_model(config).config().to_dict()
            edits = [one.edit for one in from_json(part.parameters[EDITS])]
            try:
                part.parameters[EDITS] = to_json(placed(edits, own, part.sources[0].layer_range[0]))
            except InputError as error:
                refuse(error)


def _check(config: dict[str, Any], slots: list[list[tuple[str, int]]], kept: list[int]) -> None:
    """What check.py could not see where the models were not on this machine yet."""
    try:
        texts = [text for sources in slots if (text := unlike(config, sources))]
        if not texts and (apart := shifted(config, kept)):
            texts.append(apart[1])
        if texts:
            raise RecipeError([Problem((), text) for text in texts])
    except InputError as error:
        refuse(error)


def refuse(error: InputError) -> NoReturn:
    """mergekit's commands are click's: end them with one clear message and exit code 2."""
    if click.get_current_context(silent=True) is None:
        raise error
    clean = type("RecipeException", (click.ClickException,), {"exit_code": error.exit_code})
    raise clean(str(error)) from None


def _of(config: PreTrainedConfig) -> Architecture:
    return Architecture.of(config.to_dict())


def _weight(name: str, shape: Shape, own: Architecture, config: PreTrainedConfig) -> WeightInfo:
    stored = own.stored.get(name)
    return WeightInfo(
        name=name,
        aliases=(stored,) if stored else None,
        vocabulary_axis=0 if shape[:1] == (config.vocab_size,) else None,
    )
