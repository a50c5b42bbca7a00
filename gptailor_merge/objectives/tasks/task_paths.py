"""Lets the paths in a task's YAML file start at that file, not where the command is run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILES = ("data_files", "data_dir")


_DATA_SET = "dataset_path"


def start_paths_at_files(manager: Any, root: Path) -> None:
    """Changes what an lm-eval task manager loads: paths of data that exist beside a task's file are absolute.

    Args:
        root: the directory with tasks of the user's own; lm-eval's tasks stay as they are.
    """
    factory = manager._factory
    load = factory._load_full_config

    def load_located(entry: Any, overrides: dict[str, Any] | None = None) -> Any:
        config = load(entry, overrides)
        file = entry.yaml_path
        is_own = file is not None and Path(file).resolve().is_relative_to(root.resolve())
        return located_paths(config, Path(file).resolve().parent) if is_own else config

    factory._load_full_config = load_located


def located_paths(config: Any, directory: Path) -> Any:
    """Returns a task's or group's config with absolute paths of data, as far as they exist.

    Args:
        directory: relative paths start here.
    """
    if isinstance(config, list):
        return [located_paths(entry, directory) for entry in config]
    if not isinstance(config, Mapping):
        return config
    located = {
        key: _located(value, directory) if key in _FILES else located_paths(value, directory)
        for key, value in config.items()
    }
    # The name of a builder, such as json, has its files beside it.
    if isinstance(config.get(_DATA_SET), str) and not _names_files(config):
        located[_DATA_SET] = _located(config[_DATA_SET], directory)
    return located


def _names_files(config: Mapping[str, Any]) -> bool:
    settings = config.get("dataset_kwargs")
    return isinstance(settings, Mapping) and any(key in settings for key in _FILES)


def _located(value: Any, directory: Path) -> Any:
    """Returns a path, or lists and mappings of paths, made absolute where something is there."""
    if isinstance(value, Mapping):
        return {key: _located(inner, directory) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_located(inner, directory) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    text = os.path.expanduser(value)
    path = directory / text
    is_pattern = "*" in text and not os.path.isabs(text)
    exists = path.exists() or (is_pattern and any(directory.glob(text)))
    return str(path) if exists else text
