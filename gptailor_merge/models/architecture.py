"""Lists the layers and tensors of the model that transformers builds from a config.

The model is built without weights (on the meta device) and inspected, so that no architecture needs
rules of its own. The layers are those of the language model, which may be a part of the model, beside a
vision tower.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.configs import build
from gptailor_merge.models.depth import DEPTH, PERIODS, changes, choose, per_layer_lists
from gptailor_merge.models.nesting import text_of, with_text
from gptailor_merge.models.remote_code import words_of

Shape = tuple[int, ...]


Kind = frozenset[tuple[str, Any]]
"""A layer's modules, their settings and the shapes of its tensors: what tells it from other layers."""


INDEX_NAMES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number"})
"""The attributes of modules that hold the index of their layer, by which the KV cache finds its entry."""


@dataclass(frozen=True)
class Architecture:
    """The layers and tensors of a model.

    Attributes:
        prefix: the part of tensor names before the layer index, e.g. `model.layers.`.
        before: name -> shape of the tensors before the layers: the embeddings.
        after: name -> shape of the tensors after the layers: final norm and head. A head that is the
            embedding matrix is not listed.
        rest: name -> shape of the tensors that do not belong to the language model, e.g. a vision tower.
        layers: one mapping per layer, name inside the layer -> shape.
        kinds: the kind of each layer; a layer can take the place of another of its kind.
        tied: name of the head's tensor -> name of the embeddings' that it is; empty if it is another.
    """

    prefix: str
    before: Mapping[str, Shape]
    after: Mapping[str, Shape]
    rest: Mapping[str, Shape]
    layers: tuple[Mapping[str, Shape], ...]
    kinds: tuple[Kind, ...]
    tied: Mapping[str, str]

    @property
    def outer(self) -> dict[str, Shape]:
        """Name -> shape of all tensors outside the layers."""
        return {**self.before, **self.after, **self.rest}

    @property
    def names(self) -> Iterator[str]:
        """The names of all tensors."""
        yield from self.outer
        for index, layer in enumerate(self.layers):
            yield from (f"{self.prefix}{index}.{name}" for name in layer)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """Returns the architecture of a config, which may lack transformers' defaults.

        Raises:
            FamilyError: transformers has no such language model, or it is not a list of layers.
        """
        return _architecture(config_text(config))


def body_of(model: PreTrainedModel) -> Any:
    """Returns the module whose `layers` are the layers of a model's language model.

    transformers says where the language model is (`get_decoder`), which may hold another one.

    Raises:
        FamilyError: it has no list `layers` with an entry for each layer.
    """
    depth = getattr(model.config.get_text_config(), DEPTH, None)
    body = model
    while (inner := body.get_decoder()) is not body and isinstance(inner, PreTrainedModel):
        body = inner
    for part in (body, model.base_model):
        layers = getattr(part, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers) == depth:
            return part
    raise FamilyError(f"{type(body).__name__} has no list `layers`, one for each layer")


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Returns the list of layers of a model's language model.

    Raises:
        FamilyError: see body_of.
    """
    layers: nn.ModuleList = body_of(model).layers
    return layers


def config_text(config: Mapping[str, Any]) -> str:
    """Returns a config as JSON; equal configs have equal texts."""
    return json.dumps(dict(config), sort_keys=True)


_TOKENS = re.compile(r"^vocab_size$|_token_(id|index)$")
"""Matches the keys that describe a tokenizer: its size, and the ids of tokens with a meaning."""


def pruned(
    config: Mapping[str, Any], kept: Sequence[int], donor: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the config of the pruned model, see depth.changes.

    Args:
        kept: the layer of the config's model in each slot of the pruned one.
        donor: the config of the model that gives the tokenizer; None means `config` itself.
    """
    text, theirs = text_of(config), text_of(donor or {})
    whole = {**config, **tokens_of(donor or {})}
    return with_text(whole, {**changes(text, kept), **tokens_of(theirs)})


def tokens_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a config, without nested ones, that describe the tokenizer."""
    return {key: value for key, value in config.items() if _TOKENS.search(key)}


def misfits(config: Mapping[str, Any], kept: Sequence[int]) -> list[tuple[int, str]]:
    """Returns (slot, reason) for each slot where the pruned config describes another kind of layer.

    This happens if the model computes a layer's kind from its index alone.

    Raises:
        FamilyError: a tensor outside the layers has another shape in the pruned model.
    """
    source, target = Architecture.of(config), Architecture.of(pruned(config, kept))
    theirs = target.outer
    for name, shape in source.outer.items():
        if theirs.get(name) != shape:
            raise FamilyError(f"the shape of {name}, {list(shape)}, depends on the number of layers")
    return [
        (slot, difference(source.kinds[layer], target.kinds[slot]))
        for slot, layer in enumerate(kept)
        if source.kinds[layer] != target.kinds[slot]
    ]


def pattern(config: Mapping[str, Any], layers: int) -> tuple[Kind, ...] | None:
    """Returns the kinds that the slots of a model with `layers` layers must have, or None if any will do.

    The kinds are fixed if the model computes a layer's kind from its index and no list in the config
    overrides it.
    """
    depth = len(Architecture.of(config).kinds)
    spread = [round(i * (depth - 1) / max(1, layers - 1)) for i in range(layers)]
    # If the last layers, the first layers and layers from everywhere all keep their kinds, then the
    # config lists the kinds.
    for kept in (range(depth - layers, depth), range(layers), spread):
        if misfits(config, list(kept)):
            return Architecture.of(pruned(config, list(kept))).kinds
    return None


def nearest(config: Mapping[str, Any], kept: Sequence[int]) -> list[int] | None:
    """Returns as many layers as `kept` has, which the pruned config can describe, most of them from `kept`.

    Returns None if there is no such choice.
    """
    kinds = Architecture.of(config).kinds
    fixed = pattern(config, len(kept))
    if fixed is None:
        return list(kept)
    costs = [float(layer not in kept) for layer in range(len(kinds))]
    chosen = choose(kinds, fixed, costs, ())
    return chosen if chosen is not None and not misfits(config, chosen) else None


def unlike(config: Mapping[str, Any], layers: Sequence[tuple[str, int]]) -> str | None:
    """Returns why layers cannot be merged with each other, or None if they are all of one kind.

    Args:
        layers: (model, layer index) of each source.
    """
    kinds = Architecture.of(config).kinds
    model, layer = layers[0]
    for second_model, second_layer in layers[1:]:
        if kinds[second_layer] != kinds[layer]:
            text = difference(kinds[second_layer], kinds[layer])
            return (
                f"layers of unlike kinds: of layer {second_layer} of {second_model} {text} as of layer "
                f"{layer} of {model}; only layers of one kind can be merged"
            )
    return None


def shifted(config: Mapping[str, Any], kept: Sequence[int]) -> tuple[int, str] | None:
    """Returns (slot, message) for the first layer whose slot would change its kind, or None; see misfits.

    Raises:
        FamilyError: see misfits.
    """
    name = config["model_type"]
    try:
        misplaced = misfits(config, kept)
    except FamilyError as error:
        raise FamilyError(f"{name} cannot be pruned: {error}") from None
    if not misplaced:
        return None
    slot, text = misplaced[0]
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
    """Returns one setting in which two kinds differ, as `setting is a, not b`.

    >>> difference(frozenset({("mlp.width", 8)}), frozenset({("mlp.width", 16)}))
    'mlp.width is 8, not 16'
    """
    ours, theirs = dict(first - second), dict(second - first)
    # Settings say more than shapes, and shapes more than names of classes.
    keys = sorted({*ours, *theirs}, key=lambda key: (key not in ours or key not in theirs, "." in key, key))
    key = keys[0]
    return f"{key} is {ours.get(key, 'absent')}, not {theirs.get(key, 'absent')}"


@lru_cache(maxsize=64)
def _architecture(text: str) -> Architecture:
    model = shared_on_meta(text)
    layers = layers_of(model)
    prefix = _path_of(model, layers)
    tied = dict(model.all_tied_weights_keys)
    head = model.get_output_embeddings()
    tied_head = None if head is None else f"{_path_of(model, head)}weight"
    tensors = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
    names = list(tensors)
    first = next(place for place, name in enumerate(names) if name.startswith(prefix))
    rest = {name: tensors[name] for name in _rest(model, tensors)}
    outer = {n: s for n, s in tensors.items() if not n.startswith(prefix) and n not in rest}
    before = {name: outer[name] for name in names[:first] if name in outer}
    text_config = model.config.get_text_config().to_dict()
    if DEPTH not in text_config:  # GPT-2, BART and others have other names for it
        raise FamilyError(f"its config has no {DEPTH}")
    lists = per_layer_lists(text_config)
    entries = [{key: str(values[i]) for key, values in lists.items()} for i in range(len(layers))]
    settings = [dict(_settings(layer)) for layer in layers]
    indices = _indices(settings)
    return Architecture(
        prefix=prefix,
        before=before,
        after={name: shape for name, shape in outer.items() if name not in before},
        rest=rest,
        layers=tuple(
            {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} for layer in layers
        ),
        kinds=tuple(
            frozenset({k: v for k, v in {**plain, **listed}.items() if k not in indices}.items())
            for plain, listed in zip(settings, entries, strict=True)
        ),
        tied={name: source for name, source in tied.items() if name == tied_head},
    )


def _path_of(model: PreTrainedModel, wanted: nn.Module) -> str:
    """Returns the part of tensor names that stands before the names inside a module."""
    path = next(name for name, module in model.named_modules() if module is wanted)
    return f"{path}." if path else ""


def _rest(model: PreTrainedModel, names: Iterable[str]) -> Iterator[str]:
    """Yields the tensors outside the language model, to which embeddings and head belong."""
    if model.config.get_text_config() is model.config:
        return
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    parts = (body_of(model), *(end for end in ends if end is not None))
    paths = tuple(_path_of(model, part) for part in parts)
    yield from (name for name in names if not name.startswith(paths))


@lru_cache(maxsize=4)
def shared_on_meta(text: str) -> PreTrainedModel:
    """Builds the model of a config, given as JSON, without weights; nobody may change it.

    Raises:
        FamilyError: transformers cannot build it.
    """
    return on_meta(text)


def on_meta(text: str) -> PreTrainedModel:
    """Builds the model of a config, given as JSON, without weights.

    Raises:
        FamilyError: transformers cannot build it.
    """
    document = json.loads(text)
    try:
        config: PreTrainedConfig = AutoConfig.for_model(document.pop("model_type"), **document)
        with torch.device("meta"), no_init_weights():
            model = build(config)
    except FamilyError:
        raise
    except Exception as error:  # a model's code may raise anything
        raise FamilyError(f"transformers cannot build this model: {words_of(error)}") from None
    return model


def _settings(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) for a layer's classes, plain settings and tensor shapes."""
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
    """Returns the settings that hold only the layer's index, which is no part of its kind."""
    names = {name for of_layer in settings for name in of_layer if name.rpartition(".")[2] in INDEX_NAMES}
    if len(settings) > 1:
        for name in set.union(*map(set, settings)):
            values = [of_layer.get(name) for of_layer in settings]
            if all(type(v) is int and v == i for i, v in enumerate(values)):
                names.add(name)
    return names
