"""Registers the `tailor` method, and tells mergekit the tensors and the config of tailored models.

mergekit 0.1.5 has its own definitions of architectures, in which all layers hold the same tensors, and it
writes the base's config with another number of layers. Both are wrong for models whose layers differ, and
for language models that are a part of a larger model.
`register` replaces the two functions of `mergekit.merge` that decide this, for configurations of the
method `tailor` only; all others pass untouched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import mergekit.merge
from mergekit.architecture.base import ModelArchitecture, ModuleArchitecture, ModuleDefinition, WeightInfo
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.lazy_tensor_loader import LazyTensorLoader, ShardedTensorIndex, ShardInfo
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods import registry
from mergekit.options import MergeOptions
from transformers import PreTrainedConfig
from transformers.utils import (
    FEATURE_EXTRACTOR_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
)

from gptailor_merge.composing.adapter_places import check_adapter
from gptailor_merge.composing.editing import from_json, to_json
from gptailor_merge.composing.output_projections import placed
from gptailor_merge.errors import InputError, Problem, RecipeError
from gptailor_merge.host.lowering import config_base
from gptailor_merge.host.tailor_method import EDITS, NAMES, TailorMethod
from gptailor_merge.models.architecture import Architecture, Shape, pruned, shifted, unlike
from gptailor_merge.models.checkpoint import headers_in
from gptailor_merge.models.depth import DEPTH
from gptailor_merge.models.stored_names import WrittenNames, stored_names
from gptailor_merge.recipe.plan import LORA
from gptailor_merge.recipe.recipe import TAILOR

_PROCESSOR_FILES = tuple(
    dict.fromkeys((PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, FEATURE_EXTRACTOR_NAME, VIDEO_PROCESSOR_NAME))
)
"""The files beside the tokenizer that say how images, sounds and videos are read; mergekit omits them."""


class TailorModule(ModuleArchitecture):  # type: ignore[misc]  # mergekit has no types
    """The tensors of a model as transformers builds it from a config, layer by layer.

    Args:
        written: the names that are written.
        stored: one mapping per model that is read, name of a tensor -> its name there.
    """

    def __init__(self, written: WrittenNames, stored: Sequence[Mapping[str, str]]) -> None:
        self.written, self._stored = written, stored

    def pre_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """Returns the embeddings."""
        architecture = _architecture(config)
        return self._weights(architecture.before, config)

    def layer_weights(self, index: int, config: PreTrainedConfig) -> list[WeightInfo]:
        """Returns the tensors of one layer; layers of one kind list them in the same order.

        A layer that the model does not have stands for the tensors outside the language model.
        """
        architecture = _architecture(config)
        if not 0 <= index < len(architecture.layers):
            return self._weights(architecture.rest, config)
        prefix = f"{architecture.prefix}{index}."
        return self._weights({prefix + n: s for n, s in architecture.layers[index].items()}, config)

    def post_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """Returns final norm and head."""
        architecture = _architecture(config)
        return self._weights(architecture.after, config)

    def _weights(self, shapes: Mapping[str, Shape], config: PreTrainedConfig) -> list[WeightInfo]:
        rows = config.get_text_config().vocab_size
        weights = []
        for name, shape in shapes.items():
            written = self.written.of(name)
            others = dict.fromkeys(stored.get(name, name) for stored in self._stored)
            aliases = tuple(other for other in (*others, name) if other != written)
            axis = 0 if shape[:1] == (rows,) else None
            weights.append(WeightInfo(name=written, aliases=aliases or None, vocabulary_axis=axis))
        return weights


def register() -> None:
    """Makes `tailor` known to mergekit; a second call does nothing."""
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
        _open_chosen_weights(config, options)
        module = _module(config, options)
        _place_edits(config, module.written)
        return ModelArchitecture(
            modules={"default": ModuleDefinition(architecture=module)},
            architectures=[],
            model_type="",
            tagalong_files=list(_PROCESSOR_FILES),
        )

    def model_out_config(config: MergeConfiguration, *arguments: Any, **options: Any) -> PreTrainedConfig:
        if config.merge_method != TAILOR:
            return config_of(config, *arguments, **options)
        donor = config.base_model
        base = _config_model(config)
        result = config_of(config.model_copy(update={"base_model": base}), *arguments, **options)
        base_config = base.config().to_dict()
        # The first slice and the last two have no layers, see lowering.py.
        slots = [[(str(s.model), s.layer_range[0]) for s in part.sources] for part in config.slices[1:-2]]
        kept = [sources[0][1] for sources in slots]
        _check_kinds(base_config, slots, kept)
        delattr(result, DEPTH)  # mergekit set it, and it counts a slice that is no layer
        return _changed(result, base_config, pruned(base_config, kept, donor.config().to_dict()))

    mergekit.merge.get_architecture_info = get_architecture_info
    mergekit.merge._model_out_config = model_out_config


def _open_chosen_weights(config: MergeConfiguration, options: Any) -> None:
    """Makes mergekit read the weights that transformers loads; by itself it prefers shards to one file."""
    for model in config.referenced_models():
        if model.lora:
            continue  # mergekit loads and saves these by transformers
        try:
            directory = Path(model.local_path(options.transformers_cache))
            headers = headers_in(directory)
        except InputError as error:
            refuse(error)
        files = {name: header.file for name, header in headers.items()}
        shards = [
            ShardInfo(file, [name for name in files if files[name] == file]) for file in set(files.values())
        ]
        index = ShardedTensorIndex(str(directory), is_safetensors=True, tensor_paths=files, shards=shards)
        LoaderCache().loaders[model] = LazyTensorLoader(index, options.lazy_unpickle)


def _config_model(config: MergeConfiguration) -> ModelReference:
    return ModelReference.model_validate(config_base(config.parameters) or config.base_model)


def _module(config: MergeConfiguration, options: MergeOptions) -> TailorModule:
    """Opens the models that a configuration names, as mergekit will anyway, and reads their names."""
    loaders = LoaderCache()
    loaders.setup(options)
    base = _config_model(config)
    document = base.config().to_dict()
    names = {model: loaders.get(model).index.tensor_paths for model in (base, *config.referenced_models())}
    try:
        written = WrittenNames.in_checkpoint(document, names[base])
        return TailorModule(written, [stored_names(document, tensors) for tensors in names.values()])
    except InputError as error:
        refuse(error)


def _place_edits(config: MergeConfiguration, written: WrittenNames) -> None:
    """Adds to each edit its tensors, for which the model's config must be on this machine."""
    base_config: dict[str, Any] | None = None
    slices = config.slices or []
    # The first slice and the last two have no layers, see lowering.py.
    kept = [part.sources[0].layer_range[0] for part in slices[1:-2]]
    for position, part in enumerate(slices):
        if EDITS in (part.parameters or {}):
            base_config = base_config or _config_model(config).config().to_dict()
            edits = [placed_edit.edit for placed_edit in from_json(part.parameters[EDITS])]
            has_layers = 0 < position < len(slices) - 2
            layer = part.sources[0].layer_range[0] if has_layers else None
            try:
                if position == 1 and edits[-1].part == LORA:
                    check_adapter(edits[-1], pruned(base_config, kept))
                placed_edits = placed(edits, base_config, layer)
            except InputError as error:
                refuse(error)
            name_of = written.inner_of if has_layers else written.of
            part.parameters[EDITS] = to_json(placed_edits)
            # The method sees the names that are written; edits go by those of the model.
            edited_names = {name_of(name): name for p in placed_edits for name in p.names}
            part.parameters[NAMES] = json.dumps(edited_names)


def _check_kinds(config: dict[str, Any], slots: list[list[tuple[str, int]]], kept: list[int]) -> None:
    """Checks the kinds of layers, which planning.check cannot do before the models are on this machine."""
    try:
        texts = [text for sources in slots if (text := unlike(config, sources))]
        if not texts and (misplaced := shifted(config, kept)):
            texts.append(misplaced[1])
        if texts:
            raise RecipeError([Problem((), text) for text in texts])
    except InputError as error:
        refuse(error)


def refuse(error: InputError) -> NoReturn:
    """Ends a command of mergekit, which is click's, with one message; elsewhere raises the error."""
    if click.get_current_context(silent=True) is None:
        raise error
    clean = type("RecipeException", (click.ClickException,), {"exit_code": error.exit_code})
    raise clean(str(error)) from None


def _changed(config: PreTrainedConfig, old: Mapping[str, Any], new: Mapping[str, Any]) -> PreTrainedConfig:
    """Sets the entries of a config that differ between two documents, also in configs inside it."""
    for key, value in new.items():
        part = getattr(config, key, None)
        if isinstance(part, PreTrainedConfig) and isinstance(value, Mapping):
            _changed(part, old[key], value)
        elif key == DEPTH or old.get(key) != value:
            setattr(config, key, value)
    return config


def _architecture(config: PreTrainedConfig) -> Architecture:
    return Architecture.of(config.to_dict())
