"""`hf gptailor` hands three commands over to gptailor; `make interop` installs it by the client's own code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "integrations" / "hf-gptailor"


@pytest.fixture
def extension() -> Any:
    spec = importlib.util.spec_from_file_location("hf_gptailor", FOLDER / "hf_gptailor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gptailor beside hf that prints its arguments and exits with 3, in a directory that is on PATH."""
    for name in ("gptailor", "hf"):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text('#!/bin/sh\necho "ran $@"\nexit 3\n')
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:/bin:/usr/bin")
    monkeypatch.delenv("GPTAILOR", raising=False)
    return file.parent / "gptailor"


def run(extension: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hf-gptailor", *arguments])
    return int(extension.main())


def test_it_hands_over_and_returns_the_exit_code(
    extension: Any, command: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(extension, monkeypatch, "push", "a run", "me/model") == 3
    assert capfd.readouterr().out == "ran push a run me/model\n"


def test_it_finds_the_command(extension: Any, command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert extension.find_command() == str(command)
    linked = command.parent.parent / "elsewhere" / "hf"
    linked.parent.mkdir()
    linked.symlink_to(command.parent / "hf")
    monkeypatch.setenv("PATH", str(linked.parent))
    assert extension.find_command() == str(command)
    monkeypatch.setenv("GPTAILOR", "/no/such/file")
    assert extension.find_command() is None


def test_what_it_cannot_do_is_one_sentence(
    extension: Any, command: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(extension, monkeypatch, "repair") == 2
    assert capfd.readouterr().err == "hf gptailor: expected one of check, push, reproduce, found 'repair'\n"
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(extension, monkeypatch, "check", "model") == 2
    assert capfd.readouterr().err == f"{extension.MISSING}\n"
    assert run(extension, monkeypatch, "--help") == 0
    usage = capfd.readouterr().out
    assert all(name in usage for name in extension.COMMANDS)


def test_it_is_named_as_the_client_wants_it() -> None:
    """A package without dependencies, with a console script that has the repository's name."""
    lines = (FOLDER / "pyproject.toml").read_text().splitlines()
    assert FOLDER.name == "hf-gptailor"
    assert {'name = "hf-gptailor"', 'hf-gptailor = "hf_gptailor:main"', "dependencies = []"} <= {*lines}
