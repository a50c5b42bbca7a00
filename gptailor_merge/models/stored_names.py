"""Tells under which names a checkpoint holds the tensors of a model.

transformers renames tensors when it loads many models, so that one layout in memory serves checkpoints of
several ages. The names are found by the same functions that loading calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from gptailor_merge.models.architecture import Architecture, config_text, shared_on_meta


@dataclass(frozen=True)
class WrittenNames:
    """The names that tensors have in checkpoints which are made of one checkpoint.

    These are that checkpoint's own names, unless loading does more to some tensors than rename them (it
    joins experts); then they are the names of the model in memory, which transformers loads as well.

    Attributes:
        outer: name of a tensor outside the layers -> its name in checkpoints.
        prefix: the part of the model's names before the layer index.
        stored_prefix: the same part of a checkpoint's names.
        inner: name inside a layer -> its name there in checkpoints.
    """

    outer: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    stored_prefix: str = ""
    inner: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        """Returns the name that a tensor of the model has in checkpoints."""
        if name in self.outer or not self.inner or not name.startswith(self.prefix):
            return self.outer.get(name, name)
        index, _, inner = name.removeprefix(self.prefix).partition(".")
        return f"{self.stored_prefix}{index}.{self.inner_of(inner)}"

    def inner_of(self, name: str) -> str:
        """Returns the name that a tensor of a layer has inside it in checkpoints."""
        return self.inner.get(name, name)

    @classmethod
    def in_checkpoint(cls, config: Mapping[str, Any], names: Iterable[str]) -> WrittenNames:
        """Returns the names for checkpoints that are made of the one which holds tensors of these names."""
        stored, architecture = stored_names(config, names), Architecture.of(config)
        if any(name not in stored for name in architecture.names):
            return cls()
        inner: dict[str, str] = {}
        prefixes = set()
        for index, layer in enumerate(architecture.layers):
            for name in layer:
                prefix, _, rest = f".{stored[f'{architecture.prefix}{index}.{name}']}".partition(f".{index}.")
                prefixes.add(f"{prefix}.".removeprefix("."))
                inner[name] = rest
        if len(prefixes) != 1:
            return cls()
        outer = {name: stored[name] for name in architecture.outer}
        return cls(outer, architecture.prefix, prefixes.pop(), inner)


def layers_prefix(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the part of a checkpoint's names before the layer index, e.g. `model.layers.`.

    Raises:
        FamilyError: see Architecture.of.
    """
    stored, prefix = stored_names(config, names), Architecture.of(config).prefix
    first = (f".{held}" for name, held in stored.items() if name.startswith(f"{prefix}0."))
    name = next((name for name in first if ".0." in name), f".{prefix}0.")
    return name[1 : name.index(".0.") + 1]


def saved_name(config: Mapping[str, Any], name: str) -> str:
    """Returns the name that transformers gives a tensor when it saves a model, if it only renames it."""
    transforms = get_model_conversion_mapping(shared_on_meta(config_text(config)), add_legacy=False)
    for transform in reversed(transforms):
        if isinstance(transform, WeightRenaming):
            name, _ = transform.reverse_transform().rename_source_key(name)
    return name


def stored_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Returns name of a model's tensor -> its name in a checkpoint, for those that loading only renames.

    Args:
        config: the model's.
        names: of the tensors that the checkpoint holds.
    """
    return dict(_stored_names(config_text(config), tuple(sorted(names, key=dot_natural_key))))


@lru_cache(maxsize=16)
def _stored_names(text: str, names: tuple[str, ...]) -> Mapping[str, str]:
    model = shared_on_meta(text)
    tensors = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    stored: dict[str, str] = {}
    for name in names:  # in the order of loading, on which some renamings depend
        renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, tensors)
        if renamed not in tensors and name in tensors:
            renamed, converter = name, None
        if renamed in tensors and converter is None:
            stored.setdefault(renamed, name)
    return stored
