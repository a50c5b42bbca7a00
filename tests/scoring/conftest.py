"""Fixtures of the tests of workers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.testing.executors import tiny_job
from tests.scoring.forked_workers import forked_workers


@pytest.fixture(scope="module")
def forks() -> Iterator[None]:
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory() as directory, forked_workers(Path(directory)):
        yield


@pytest.fixture
def tiny_search(tmp_path: Path) -> SearchConfig:
    tiny = SearchConfig.model_validate(tiny_job(tmp_path).config)
    update = {
        "search": tiny.search.model_copy(update={"budget": 16, "population": 8, "racing": True}),
        "tune": tiny.tune.model_copy(update={"finalists": 0}),
    }
    return tiny.model_copy(update=update)
