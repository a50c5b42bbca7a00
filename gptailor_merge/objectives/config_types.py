"""Value types that several sections of a search config share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from gptailor_merge.documents import Frozen, explain
from gptailor_merge.errors import KeyPath, Problem

Positive = Annotated[int, Field(ge=1)]


class Section(Frozen):
    """A part of the search config: a hashable value that takes no unknown keys."""


class DatasetConfig(Section):
    """A data set of the `datasets` library."""

    dataset: str
    config: str | None = None
    split: str = "test"
    column: str = "text"


DataSource = str | DatasetConfig
"""Texts: the path of a .jsonl or .txt file, or a data set."""


def _read_source(value: Any) -> Any:
    """Decides between file and data set by hand, since pydantic would report the failures of both."""
    if isinstance(value, Mapping):
        try:
            return DatasetConfig.model_validate(value)
        except ValidationError as error:
            problems = explain(error, DatasetConfig)
            raise ValueError("; ".join(f"{p.where}: {p.message}" for p in problems)) from None
    if not isinstance(value, (str, DatasetConfig)):
        raise ValueError(f"expected a file, or {{dataset: name, …}}, found {value!r}")
    return value


Data = Annotated[dict[str, Annotated[DataSource, BeforeValidator(_read_source)]], Field(min_length=1)]
"""Name -> its texts."""


def missing_files(path: KeyPath, data: Mapping[str, DataSource], directory: Path) -> list[Problem]:
    """Returns a problem for each file that does not exist.

    Args:
        path: key of the data in the config.
        directory: relative paths start here.
    """
    return [
        Problem((*path, name), f"no such file, found {source!r}; looked for {directory / source}")
        for name, source in data.items()
        if isinstance(source, str) and not (directory / source).is_file()
    ]


def absolute_files(data: Mapping[str, DataSource], directory: Path) -> dict[str, DataSource]:
    """Returns the data with absolute paths; relative ones start at `directory`."""
    return {
        name: str(directory / source) if isinstance(source, str) else source for name, source in data.items()
    }


def source_in_words(source: DataSource) -> str:
    """Names a file without its directory, or a data set with its config and split.

    >>> source_in_words("/home/me/texts/stories.jsonl")
    'stories.jsonl'
    >>> source_in_words(DatasetConfig(dataset="wikitext", config="wikitext-2-raw-v1"))
    'wikitext wikitext-2-raw-v1, test split'
    """
    if isinstance(source, str):
        return PurePath(source).name
    config = f" {source.config}" if source.config else ""
    return f"{source.dataset}{config}, {source.split} split"
