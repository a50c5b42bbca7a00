"""A trackio of each test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def trackio_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Gives trackio an empty directory; it reads where its files are when it is imported."""
    directory = tmp_path_factory.mktemp("trackio")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", str(directory))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        del sys.modules[name]
