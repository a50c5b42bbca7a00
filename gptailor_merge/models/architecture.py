"""What layers and tensors a model of some config has, as transformers builds it.

The model is built without weights (on the meta device) and looked at, so that nothing has to be
known of single architectures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.initialization import no_init_weights

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.depth import DEPTH, PERIODS, changes, choose, per_layer_lists

Shape = tuple[int, ...]


Kind = frozenset[tuple[str, Any]]
"""All that tells one layer from another: its modules, their settings and the shapes of its tensors."""


INDEX_NAMES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number"})
"""What modules call the index of their layer, which the KV cache goes by."""


@dataclass(frozen=True)
class Architecture:
    """The layers and tensors of a model.

    Attributes:
        prefix: what stands before the layer index in tensor names, e.g. `model.layers.`.
        before: name -> shape of the tensors before the layers: the embeddings.
        after: name -> shape of the tensors behind the layers: final norm and head. A head that is
            the embedding matrix is not listed.
        layers: for each layer, name inside the layer -> shape.
        kinds: for each layer its kind; a layer can stand in the place of one of the same kind.
        stored: name -> what checkpoints call the tensor, where that is another name.
    """

    prefix: str
    before: Mapping[str, Shape]
    after: Mapping[str, Shape]
    layers: tuple[Mapping[str, Shape], ...]
    kinds: tuple[Kind, ...]
    stored: Mapping[str, str]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """The architecture of a config, with transformers' defaults filled in or not.

        Raises:
            FamilyError: transformers has no such causal language model, or it is not a list of layers.
        """
        return _built(json.dumps(dict(config), sort_keys=True))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """A model's list of layers.

    Raises:
        FamilyError: its body has no list `layers` as long as the model is deep.
    """
    body = model.base_model
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != model.config.num_hidden_layers:
        raise FamilyError(f"{type(body).__name__} has no list `layers`, one for each layer")
    return layers


_TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def pruned(
    config: Mapping[str, Any], kept: Sequence[int], donor: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config of the model of these layers, see depth.changes.

    Args:
        donor: the config of the model whose tokenizer it gets; default is `config` itself.
    """
    return {**config, **changes(config, kept), **tokens_of(donor or {})}


def tokens_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the tokenizer."""
    return {key: config[key] for key in _TOKENS if key in config}


def misfits(config: Mapping[str, Any], kept: Sequence[int]) -> list[tuple[int, str]]:
    """(slot, reason) where the pruned config describes another kind of layer than the one kept.

    This is so where the model computes a layer's kind from its index alone.

    Raises:
        FamilyError: a tensor outside the layers has another shape in the pruned model.
    """
    source, target = Architecture.of(config), Architecture.of(pruned(config, kept))
    theirs = {**target.before, **target.after}
    for name, shape in {**source.before, **source.after}.items():
        if theirs.get(name) != shape:
            raise FamilyError(f"the shape of {name}, {list(shape)}, depends on the number of layers")
    return [
        (slot, difference(source.kinds[layer], target.kinds[slot]))
        for slot, layer in enumerate(kept)
        if source.kinds[layer] != target.kinds[slot]
    ]


def pattern(config: Mapping[str, Any], layers: int) -> tuple[Kind, ...] | None:
    """The kinds that the slots of a model of so many layers must have, or None where any will do.

    It is fixed where the model computes a layer's kind from its index and no list can say otherwise.
    """
    depth = len(Architecture.of(config).kinds)
    spread = [round(i * (depth - 1) / max(1, layers - 1)) for i in range(layers)]
    # The first and the last layers alone, and layers from everywhere: a pattern that bends to all
    # three is written in the config.
    for kept in (range(depth - layers, depth), range(layers), spread):
        if misfits(config, list(kept)):
            return Architecture.of(pruned(config, list(kept))).kinds
    return None


def nearest(config: Mapping[str, Any], kept: Sequence[int]) -> list[int] | None:
    """As many layers, as many of them as can be from `kept`, that the pruned config can describe."""
    kinds = Architecture.of(config).kinds
    fixed = pattern(config, len(kept))
    if fixed is None:
        return list(kept)
    costs = [float(layer not in kept) for layer in range(len(kinds))]
    chosen = choose(kinds, fixed, costs, ())
    return chosen if chosen is not None and not misfits(config, chosen) else None


def unlike(config: Mapping[str, Any], layers: Sequence[tuple[str, int]]) -> str | None:
    """Why layers cannot be merged with each other, if they are not all of one kind.

    Args:
        layers: (model, layer index) of each source.
    """
    kinds = Architecture.of(config).kinds
    model, layer = layers[0]
    for other, other_layer in layers[1:]:
        if kinds[other_layer] != kinds[layer]:
            text = difference(kinds[other_layer], kinds[layer])
            return (
                f"layers of unlike kinds: of layer {other_layer} of {other} {text} as of layer {layer} of "
                f"{model}; only layers of one kind can be merged"
            )
    return None


def shifted(config: Mapping[str, Any], kept: Sequence[int]) -> tuple[int, str] | None:
    """(slot, what is wrong) of the first layer that would become one of another kind; see misfits.

    Raises:
        FamilyError: see misfits.
    """
    name = config["model_type"]
    try:
        apart = misfits(config, kept)
    except FamilyError as error:
        raise FamilyError(f"{name} cannot be pruned: {error}") from None
    if not apart:
        return None
    slot, text = apart[0]
    possible = nearest(config, kept)
    cure = f"no model of {len(kept)} layers keeps it"
    if possible is not None:
        removed = sorted(set(range(len(Architecture.of(config).kinds))) - set(possible))
        cure = f"removing the layers {removed} keeps it"
    return slot, (
        f"layer {kept[slot]} would be in slot {slot}, where {name} computes another kind of layer from the "
        f"index ({text}): removals shift this pattern; {cure}"
    )


def difference(first: Kind, second: Kind) -> str:
    """`x is a, not b` for what two kinds differ in, e.g. `self_attn.sliding_window is 8, not None`."""
    ours, theirs = dict(first - second), dict(second - first)
    # Settings say more than shapes, and shapes more than names of classes.
    keys = sorted({*ours, *theirs}, key=lambda key: (key not in ours or key not in theirs, "." in key, key))
    key = keys[0]
    return f"{key} is {ours.get(key, 'absent')}, not {theirs.get(key, 'absent')}"


@lru_cache(maxsize=64)
def _built(text: str) -> Architecture:
    model = on_meta(text)
    layers = layers_of(model)
    if len(layers) != json.loads(text)[DEPTH]:
        raise FamilyError("its depth is said in a part of its config; only text models are supported")
    prefix = next(name for name, module in model.named_modules() if module is layers) + "."
    tied = set(model.all_tied_weights_keys) if getattr(model.config, "tie_word_embeddings", False) else set()
    tensors = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
    names = list(tensors)
    first = next(place for place, name in enumerate(names) if name.startswith(prefix))
    outer = {n: s for n, s in tensors.items() if not n.startswith(prefix)}
    before = {name: outer[name] for name in names[:first]}
    lists = per_layer_lists(model.config.to_dict())
    entries = [{key: str(values[i]) for key, values in lists.items()} for i in range(len(layers))]
    settings = [dict(_settings(layer)) for layer in layers]
    indices = _indices(settings)
    names_stored = {name: _stored_name(model, name) for name in names}
    return Architecture(
        prefix=prefix,
        before=before,
        after={name: shape for name, shape in outer.items() if name not in before},
        layers=tuple(
            {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} for layer in layers
        ),
        kinds=tuple(
            frozenset({k: v for k, v in {**own, **said}.items() if k not in indices}.items())
            for own, said in zip(settings, entries, strict=True)
        ),
        stored={name: stored for name, stored in names_stored.items() if stored != name},
    )


def on_meta(text: str) -> PreTrainedModel:
    """The model of a config in JSON, without weights."""
    document = json.loads(text)
    try:
        config: PreTrainedConfig = AutoConfig.for_model(document.pop("model_type"), **document)
        with torch.device("meta"), no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # models fail at odd configs in every possible way
        reason = " ".join(str(error).split())
        raise FamilyError(f"transformers cannot build this model: {reason}") from None
    return model


def _stored_name(model: PreTrainedModel, name: str) -> str:
    """What save_pretrained calls a tensor, as far as it only renames it."""
    for transform in reversed(get_model_conversion_mapping(model, add_legacy=False)):
        if isinstance(transform, WeightRenaming):
            name, _ = transform.reverse_transform().rename_source_key(name)
    return name


def _settings(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, value) of a layer's classes, plain settings and shapes."""
    for path, module in layer.named_modules():
        dot = f"{path}." if path else ""
        yield path or "layer", type(module).__name__
        for name, value in vars(module).items():
            is_plain = isinstance(value, (bool, int, float, str, type(None)))
            if is_plain and not name.startswith("_") and name not in PERIODS:
                yield dot + name, value
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield dot + name, tuple(tensor.shape)


def _indices(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    """The settings that hold nothing but the layer's index, which belongs to its place."""
    names = {name for own in settings for name in own if name.rpartition(".")[2] in INDEX_NAMES}
    if len(settings) > 1:
        for name in set.union(*(set(own) for own in settings)):
            values = [own.get(name) for own in settings]
            if all(type(v) is int and v == i for i, v in enumerate(values)):
                names.add(name)
    return names
