"""Value types that several sections of a search config share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from gptailor_merge.calibration.conversations import TEXT
from gptailor_merge.calibration.text_files import data_files
from gptailor_merge.documents import Frozen, explain
from gptailor_merge.errors import DataError, KeyPath, Problem

Positive = Annotated[int, Field(ge=1)]


AUTO: Literal["auto"] = "auto"
"""Leaves a number to be found on this device."""


def _read_batch_tokens(value: Any) -> Any:
    if value != AUTO and not (type(value) is int and value >= 1):
        raise ValueError(f"expected a whole number from 1, or auto, found {value!r}")
    return value


AutoSize = Annotated[int | Literal["auto"], BeforeValidator(_read_batch_tokens)]
"""A size, or auto, which leaves it to be found."""


class Section(Frozen):
    """A part of the search config: a hashable value that takes no unknown keys."""


class DatasetConfig(Section):
    """A data set of the `datasets` library.

    Attributes:
        dataset: its name on the Hub, or a directory.
        config: the name of its configuration, where it has several.
        split: the split that is read.
        column: the column that holds the text, or the messages of a conversation.
    """

    dataset: str
    config: str | None = None
    split: str = "test"
    column: str = TEXT


class FileConfig(Section):
    """A file of texts, or a directory of such files.

    Attributes:
        file: its path.
        column: the field or column that holds the text, or the messages of a conversation.
    """

    file: str
    column: str = TEXT


DataSource = str | FileConfig | DatasetConfig
"""Texts: the path of a file or directory, the same with a column, or a data set."""


def _read_source(value: Any) -> Any:
    """Decides between file and data set by hand, since pydantic would report the failures of both."""
    if isinstance(value, Mapping):
        model = FileConfig if "file" in value and "dataset" not in value else DatasetConfig
        try:
            return model.model_validate(value)
        except ValidationError as error:
            problems = explain(error, model)
            raise ValueError("; ".join(f"{p.where}: {p.message}" for p in problems)) from None
    if not isinstance(value, (str, FileConfig, DatasetConfig)):
        forms = "{file: path, column: …}, or {dataset: name, …}"
        raise ValueError(f"expected a file, or {forms}, found {value!r}")
    return value


Data = Annotated[dict[str, Annotated[DataSource, BeforeValidator(_read_source)]], Field(min_length=1)]
"""Name -> its texts."""


def located(path: str, directory: Path) -> Path:
    """Returns a path of a config: `~` is the home directory, and relative paths start at `directory`."""
    return directory / os.path.expanduser(path)


def missing_files(path: KeyPath, data: Mapping[str, DataSource], directory: Path) -> list[Problem]:
    """Returns a problem for each file that does not exist, or is not of a kind that is read.

    Args:
        path: key of the data in the config.
        directory: relative paths start here.
    """
    problems = []
    for name, source in data.items():
        if isinstance(source, DatasetConfig):
            if is_path(source.dataset) and not located(source.dataset, directory).is_dir():
                message = f"no such directory, found {source.dataset!r}"
                problems.append(Problem((*path, name, "dataset"), f"{message}; looked for {directory}"))
            continue
        text = source if isinstance(source, str) else source.file
        file = located(text, directory)
        if not file.exists():
            problems.append(Problem((*path, name), f"no such file, found {text!r}; looked for {file}"))
            continue
        try:
            data_files(file)
        except DataError as error:
            problems.append(Problem((*path, name), str(error)))
    return problems


def absolute_files(data: Mapping[str, DataSource], directory: Path) -> dict[str, DataSource]:
    """Returns the data with absolute paths; relative ones start at `directory`.

    A data set is a path where it looks like one, or where a directory of its name is there.
    """
    return {name: _absolute(source, directory) for name, source in data.items()}


def _absolute(source: DataSource, directory: Path) -> DataSource:
    if isinstance(source, str):
        return str(located(source, directory))
    if isinstance(source, FileConfig):
        return source.model_copy(update={"file": str(located(source.file, directory))})
    place = located(source.dataset, directory)
    return source.model_copy(update={"dataset": str(place)}) if place.is_dir() else source


def is_path(dataset: str) -> bool:
    """Tells whether a data set's name can only be a path."""
    return dataset.startswith(("/", "./", "../", "~"))


def source_in_words(source: DataSource) -> str:
    """Names a file without its directory, or a data set with its config and split.

    >>> source_in_words("/home/me/texts/stories.jsonl")
    'stories.jsonl'
    >>> source_in_words(DatasetConfig(dataset="wikitext", config="wikitext-2-raw-v1"))
    'wikitext wikitext-2-raw-v1, test split'
    >>> source_in_words(DatasetConfig(dataset="/home/me/texts"))
    'texts, test split'
    """
    if isinstance(source, str):
        return PurePath(source).name
    if isinstance(source, FileConfig):
        return PurePath(source.file).name
    config = f" {source.config}" if source.config else ""
    name = PurePath(source.dataset).name if is_path(source.dataset) else source.dataset
    return f"{name}{config}, {source.split} split"
