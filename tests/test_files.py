"""Files and directories appear whole or not at all, and what is not ours stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptailor_merge.errors import ConfigError, UnwritableError
from gptailor_merge.files import (
    creating,
    make_directory,
    staged_prefix,
    staging,
    sweep,
    write_beside,
    writing,
)


def write_model(out: Path, **files: str) -> None:
    with staging(out, marker="recipe", leftovers=("model*.bin", "maps/*")) as directory:
        for name, text in {"recipe": "", **files}.items():
            (directory / name).write_text(text)


def contents(directory: Path) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): file.read_text() for file in directory.rglob("*") if file.is_file()
    }


def test_an_old_directory_is_replaced(tmp_path: Path) -> None:
    write_model(tmp_path / "out", model="1")
    (tmp_path / "out" / "model-2.bin").write_text("a shard that the new one lacks")
    (tmp_path / "out" / "maps").mkdir()
    (tmp_path / "out" / "maps" / "3").write_text("")
    write_model(tmp_path / "out", model="2")
    assert contents(tmp_path) == {"out/recipe": "", "out/model": "2"}


@pytest.mark.parametrize("theirs", [{"notes.txt": "mine", "recipe": ""}, {"model": "not written by us"}])
def test_files_of_the_user_are_kept(theirs: dict[str, str], tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "out").mkdir(exist_ok=True)
        for file in (tmp_path / "out").iterdir():
            file.unlink()
        for name, text in theirs.items():
            (tmp_path / "out" / name).write_text(text)
        write_model(tmp_path / "out", model="new")
        assert contents(tmp_path / f"out.replaced-{number}") == theirs
        assert contents(tmp_path / "out") == {"recipe": "", "model": "new"}


def test_a_link_to_a_larger_disk_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / "model"
    link.symlink_to(tmp_path / "large" / "model")
    for text in ("1", "2"):
        write_model(link, model=text)
        assert link.is_symlink()
        assert contents(tmp_path / "large") == {"model/recipe": "", "model/model": text}
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["model"]


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "large" / "model")
    for place, name in ((tmp_path, "best.yml"), (tmp_path / "large", "model")):
        (place / f"{staged_prefix(Path(name))}123").mkdir()
        (place / f"{staged_prefix(Path(name))}123" / "half").write_text("")
        (place / f".{name}.mine").write_text("")
    (tmp_path / f"{staged_prefix(Path('best.yml'))}77").write_text("half")
    for name in ("best.yml", "model"):
        sweep(tmp_path / name)
    assert contents(tmp_path) == {".best.yml.mine": "", "large/.model.mine": ""}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_failure_and_an_unwritable_place_a_mistake(number: int, tmp_path: Path) -> None:
    with pytest.raises(UnwritableError, match="out cannot be written: "), staging(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnwritableError, match="x cannot be written"), writing(Path("x")):
        raise OSError(number, os.strerror(number))
    with pytest.raises(ConfigError, match="x cannot be written: Read-only file system"), writing(Path("x")):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (
        lambda: make_directory(tmp_path / "file" / "x"),
        lambda: write_model(tmp_path / "file" / "x" / "out"),
    ):
        with pytest.raises(ConfigError, match="file/x cannot be made a directory: Not a directory"):
            make()
    with pytest.raises(ConfigError, match=r"none/a\.yml cannot be written: No such file or directory"):
        write_beside(tmp_path / "none" / "a.yml", "")
    (tmp_path / "a.yml").mkdir()
    with pytest.raises(ConfigError, match=r"a\.yml cannot be written: Is a directory"):
        write_beside(tmp_path / "a.yml", "")
    assert {file.name for file in tmp_path.iterdir()} == {"file", "a.yml"}


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


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_replaces_none(tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has come into being in the meantime, and on file systems without links."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", link)
    file = tmp_path / "search.yml"
    with creating(file, "ours") as beside:
        assert beside.read_text() == "ours"
        assert not file.exists()
    assert contents(tmp_path) == {"search.yml": "ours"}
    with pytest.raises(ConfigError, match=r"search\.yml"), creating(file, "other"):
        pass
    with pytest.raises(ConfigError, match="no good"), creating(tmp_path / "new.yml", "other"):
        raise ConfigError("no good")
    assert contents(tmp_path) == {"search.yml": "ours"}
