"""No path of this machine, and no token, leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptailor_merge.errors import MergeFailedError
from gptailor_merge.runs.redaction import public, public_name, refuse_private


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/model", "org/model"),
        ("org/model@refs/pr/1", "org/model@refs/pr/1"),
        ("model", "model"),
        ("/home/alice/models/base", "base"),
        ("/home/alice/me@work+home", "me@work+home"),
        ("/home/al+ice/base", "al+base"),
        ("../models/base", "base"),
        ("~/models/base", "base"),
        (r"C:\Users\alice\base", "base"),
        ("org/model+/home/alice/adapter", "org/model+adapter"),
        ("/home/alice/base+org/adapter", "base+adapter"),
        ("/home/alice/base+/home/alice/adapter", "base+adapter"),
    ],
)
def test_a_path_is_shown_by_its_name(model: str, shown: str) -> None:
    assert public_name(model) == shown


def test_documents_lose_their_paths_in_keys_and_lists_too() -> None:
    document = {
        "weights": {"/home/alice/base": 0.5},
        "data": ["/home/alice/a.jsonl", {"dataset": "org/data"}],
        "file": "alice/start.yml",
        "seed": 0,
    }
    assert public(document) == {
        "weights": {"base": 0.5},
        "data": ["a.jsonl", {"dataset": "org/data"}],
        "file": "start.yml",
        "seed": 0,
    }


def test_an_adapter_in_a_document_loses_its_path() -> None:
    config = {"family": {"variants": {"math": "org/model+/home/alice/adapter"}}}
    assert public(config) == {"family": {"variants": {"math": "org/model+adapter"}}}


def test_models_and_maps_are_called_by_their_public_names() -> None:
    names = {"/home/alice/base": "org/base@v1", "/home/alice/maps/repair-1.safetensors": "repair/1"}
    document = {
        "base_model": "/home/alice/base",
        "weights": {"/home/alice/base": 0.5, "/home/alice/math": 0.5},
        "repair": "/home/alice/maps/repair-1.safetensors",
        "file": "/home/alice/maps/repair-1.safetensors",
    }
    assert public(document, names) == {
        "base_model": "org/base@v1",
        "weights": {"org/base@v1": 0.5, "math": 0.5},
        "repair": "repair/1",
        "file": "repair/1",
    }


@pytest.mark.parametrize("secret", ["hf_token", "/srv/private/base", "home", "working directory"])
@pytest.mark.parametrize("file", ["README.md", "deep/model.safetensors"])
def test_a_file_that_holds_a_secret_is_refused(
    file: str, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("home", "work", "out/deep"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    text = {"home": tmp_path / "home", "working directory": tmp_path / "work"}.get(secret, secret)
    out, paths = tmp_path / "out", [Path("/srv/private/base"), Path("org/model"), Path("/srv")]

    def write(told: str) -> None:
        if file.endswith(".md"):
            (out / file).write_text(f"see {told}")
        else:
            save_file({"weight": torch.zeros(2)}, out / file, metadata={"made_from": f"{told}/x"})

    write("org/model and /srv")
    refuse_private(out, paths, "hf_token")
    write(str(text))
    with pytest.raises(
        MergeFailedError, match=f"{Path(file).name} names a path of this machine or the token"
    ):
        refuse_private(out, paths, "hf_token")


def test_without_a_token_nothing_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("text")
    refuse_private(tmp_path, [], None)


@pytest.mark.parametrize("token", ["hf_" + "aB3" * 11 + "x", "hf_oauth_" + "a1" * 12, "hf_jwt_" + "Z9" * 20])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja", "model.safetensors"])
def test_a_token_of_anybody_is_refused(file: str, token: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("set hf_token, or hf_xxxx, by hf_hub_download; see hf_transformers")
    refuse_private(tmp_path, [], None)
    if file.endswith(".safetensors"):
        save_file({f"{token}.weight": torch.zeros(2)}, tmp_path / file)
    else:
        (tmp_path / file).write_text(f'{{"a": "x\\n{token}"}}')
    with pytest.raises(
        MergeFailedError, match=rf"^{file} holds what looks like a token of the Hub, hf_…, and"
    ):
        refuse_private(tmp_path, [], None)
