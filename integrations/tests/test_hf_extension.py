"""The client's own code installs the extension into a clean environment, and `hf gptailor` runs."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.cli import extensions

FOLDER = Path(__file__).parents[1] / "hf-gptailor"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension's wheel, built as pip would build it from the repository's archive."""
    out, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "hf-gptailor"
    shutil.copytree(FOLDER, source)
    before = Path.cwd()
    os.chdir(source)
    try:
        return out / importlib.import_module("hatchling.build").build_wheel(str(out))
    finally:
        os.chdir(before)


def test_the_client_installs_and_runs_it(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only the network is replaced: what the client asks of GitHub, and where pip gets the archive."""
    asked: list[str] = []

    def request(method: str, url: str, **options: Any) -> Any:
        asked.append(url)
        if url.endswith("/hf-gptailor") and "raw." in url:  # no shell script, so that it is a package
            raise OSError("404")
        if url.endswith("info/refs"):
            return SimpleNamespace(text=f"{'a' * 40} HEAD\x00")
        return SimpleNamespace(text=(FOLDER / "pyproject.toml").read_text(), json=dict)

    def run(command: list[str], **options: Any) -> Any:
        here = [str(wheel) if part.endswith("HEAD.zip") else part for part in command]
        return subprocess_run([*here, "--no-index"] if here != command else command, **options)

    subprocess_run = subprocess.run
    monkeypatch.setattr(extensions, "EXTENSIONS_ROOT", tmp_path / "extensions")
    monkeypatch.setattr(extensions, "_github_request", request)
    monkeypatch.setattr(extensions.subprocess, "run", run)
    monkeypatch.setattr(extensions.constants, "HF_HUB_DISABLE_UPDATE_CHECK", True)
    owner, repo, short = extensions._normalize_repo_id("somebody/hf-gptailor")
    manifest = extensions._install_extension(owner=owner, repo_name=repo, short_name=short)
    assert (manifest.type, manifest.short_name) == ("python", "gptailor")
    assert manifest.description == (
        "Check, publish and rebuild tailored models: hf gptailor check, push, reproduce"
    )
    assert extensions.list_installed_extensions_for_help()[0][0] == "gptailor"

    def hf(*arguments: str) -> tuple[int | None, str, str]:
        capfd.readouterr()
        code = extensions.dispatch_unknown_top_level_extension([*arguments], {"auth"})
        return (code, *capfd.readouterr())

    # The command of an environment that is not active, by its path.
    gptailor = Path(sys.executable).parent / "gptailor"
    monkeypatch.setenv("GPTAILOR", str(gptailor))
    code, out, _ = hf("gptailor", "check", "--help")
    assert code == 0
    assert "gptailor check" in out
    monkeypatch.delenv("GPTAILOR")
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = hf("gptailor", "push", "run", "me/model")
    assert code == 2
    assert err.startswith("hf gptailor runs the command gptailor, which was not found on PATH")
