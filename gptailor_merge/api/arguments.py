"""Turns what callers pass, paths or values, into values and the files to name in messages."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptailor_merge.config import SearchConfig
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.run import Run

AnyPath = str | Path


def path_of(path: AnyPath) -> Path:
    """Returns a path; `~` is the home directory."""
    return Path(os.path.expanduser(path))


def read_config(config: AnyPath | SearchConfig) -> tuple[SearchConfig, Path | None]:
    """Returns a search config, and its file where it was read from one."""
    if isinstance(config, SearchConfig):
        return config, None
    return SearchConfig.load(path_of(config)), path_of(config)


def read_recipe(recipe: AnyPath | Recipe) -> tuple[Recipe, Path | None]:
    """Returns a recipe, and its file where it was read from one."""
    if isinstance(recipe, Recipe):
        return recipe, None
    return Recipe.load(path_of(recipe)), path_of(recipe)


@contextmanager
def file_of(model: AnyPath | Recipe) -> Iterator[Path]:
    """Yields the path of a recipe file or model directory; a recipe that is a value is written to a file."""
    if not isinstance(model, Recipe):
        yield path_of(model)
        return
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "recipe.yml"
        file.write_text(model.to_yaml(), encoding="utf-8")
        yield file


def run_in(run: AnyPath | Run) -> Run:
    """Returns a run; whether its directory holds one is for its readers to tell."""
    return run if isinstance(run, Run) else Run(path_of(run))


def ignore(step: str) -> None:
    """Takes no notice of what is being done."""
