"""Directories appear whole, with ordinary permissions, also where a link leads to another disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptailor_merge.files import staging


@pytest.fixture(params=[0o022, 0o027])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_permissions_that_files_have_here(tmp_path: Path, mask: int) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch(0o600)
    with staging(tmp_path / "out") as directory:
        save_file({"a": torch.zeros(2)}, directory / "model.safetensors")
        (directory / "inner").mkdir()
        (directory / "inner" / "script").touch(0o700)
        os.link(theirs, directory / "linked")
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").rglob("*")}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert modes["model.safetensors"] == 0o666 & ~mask
    assert (modes["script"], modes["linked"]) == (0o700, 0o600)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_another_disk_stays(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "disk").mkdir()
    if exists:
        (tmp_path / "disk" / "model").mkdir()
        (tmp_path / "disk" / "model" / "old").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tmp_path / "disk" / "model")
    with staging(tmp_path / "run" / "model") as directory:
        (directory / "new").touch()
    assert (tmp_path / "run" / "model").is_symlink()
    assert [file.name for file in (tmp_path / "disk" / "model").iterdir()] == ["new"]
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["model"]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["model"]
