"""Finds the language model's config inside a config that describes a vision tower or other parts, too.

transformers says which part that is (`get_text_config`). Where nothing is nested, the language model's
config is the config itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from transformers import CONFIG_MAPPING, PreTrainedConfig

TextPath = tuple[str, ...]
"""The keys that lead from a config to its language model's, e.g. `("text_config",)`; empty for itself."""


C = TypeVar("C", bound=PreTrainedConfig)


def text_path(config: Mapping[str, Any]) -> TextPath:
    """Returns the keys that lead to the language model's config.

    >>> text_path({"model_type": "gemma3", "text_config": {}}), text_path({"model_type": "llama"})
    (('text_config',), ())
    """
    path = _path_of_type(str(config.get("model_type")))
    part: Any = config
    for key in path:
        part = part.get(key) if isinstance(part, Mapping) else None
    # Old files of Qwen2-VL and others hold the language model's keys beside those of the whole.
    return path if isinstance(part, Mapping) else ()


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the language model's config: a part of a config, or the config itself."""
    part = config
    for key in text_path(config):
        part = part[key]
    return part


def with_text(config: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with other entries in its language model's config.

    >>> with_text({"model_type": "gemma3", "text_config": {"vocab_size": 8}}, {"vocab_size": 9})
    {'model_type': 'gemma3', 'text_config': {'vocab_size': 9}}
    """
    return _changed_at(config, text_path(config), entries)


def copied_with_text(config: C, entries: Mapping[str, Any]) -> C:
    """Returns a copy of a loaded config with other entries in its language model's config.

    Configs of other parts are shared with the original.
    """
    clone = part = copy.copy(config)
    for key in loaded_text_path(config):
        nested = copy.copy(getattr(part, key))
        setattr(part, key, nested)
        part = nested
    for key, value in entries.items():
        setattr(part, key, value)
    return clone


def loaded_text_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the language model's config of a loaded config, or the config itself."""
    try:
        return config.get_text_config()
    except ValueError:  # transformers finds several
        return config


def loaded_text_path(config: PreTrainedConfig) -> TextPath:
    """Returns the keys that lead from a loaded config to its language model's."""
    return _path_to(config, loaded_text_of(config)) or ()


@lru_cache(maxsize=256)
def _path_of_type(model_type: str) -> TextPath:
    try:
        return loaded_text_path(CONFIG_MAPPING[model_type]())
    except Exception:  # an unknown type, or one without defaults; its config's code may raise anything
        return ()


def _path_to(config: PreTrainedConfig, wanted: PreTrainedConfig) -> TextPath | None:
    if config is wanted:
        return ()
    for key in config.sub_configs:
        part = getattr(config, key, None)
        path = _path_to(part, wanted) if isinstance(part, PreTrainedConfig) else None
        if path is not None:
            return (key, *path)
    return None


def _changed_at(config: Mapping[str, Any], path: TextPath, entries: Mapping[str, Any]) -> dict[str, Any]:
    if not path:
        return {**config, **entries}
    key, *deeper = path
    part = cast(Mapping[str, Any], config[key])
    return {**config, key: _changed_at(part, tuple(deeper), entries)}
