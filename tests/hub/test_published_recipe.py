"""A published recipe names nothing of this machine: no directory, no map, whatever exists here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.documents import write_yaml
from gptailor_merge.errors import ConfigError, InputError, RecipeError
from gptailor_merge.hub import parents, published_recipe, reproduce
from gptailor_merge.hub.published_recipe import with_places
from gptailor_merge.models.checkpoint import ModelId

HUB = "org/base@v1"
ODD = [
    "/private",
    "../private",
    "~/private",
    "./a/b",
    "./..",
    "./",
    ".",
    "org/../x",
    "a/b/c",
    "org/x@../y",
    "org/x@",
]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    snapshot = tmp_path / "models--evil--x" / "snapshots" / "abc"
    (snapshot / "repair").mkdir(parents=True)
    return snapshot


def recipe(**places: str) -> dict[str, Any]:
    """A recipe in which every place that can name a model or a file does."""
    name = {
        key: places.get(key, HUB) for key in ("base_model", "source", "slice_base", "member", "origin_base")
    }
    select: dict[str, Any] = {"op": "select"}
    if "map" in places:
        select |= {"repair": places["map"], "repair_digest": "0" * 16}
    head = {
        "method": "task_arithmetic",
        "weights": {name["member"]: 0.5, "./mine": 0.5},
        "base_model": name["origin_base"],
    }
    merged = [{"model": m, "layer_range": [1, 2]} for m in (name["source"], "./mine")]
    return {
        "merge_method": "tailor",
        "base_model": name["base_model"],
        "parameters": {
            "embeddings": places.get("embeddings", "base"),
            "head": head,
            "tokenizer": places.get("tokenizer", "base"),
        },
        "slices": [
            {"sources": [{"model": name["source"], "layer_range": [0, 1]}], "parameters": select},
            {
                "sources": merged,
                "base_model": name["slice_base"],
                "parameters": {"op": "merge", "method": "slerp", "t": 0.5},
            },
        ],
    }


def write(published: Path, document: dict[str, Any]) -> None:
    (published / "mergekit_config.yml").write_text(write_yaml(document))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "place", ["base_model", "source", "slice_base", "member", "origin_base", "embeddings", "tokenizer"]
)
def test_a_member_is_on_the_hub_or_given(published: Path, tmp_path: Path, place: str, odd: str) -> None:
    for name in (odd, f"{HUB}+{odd}", f"{odd}+{HUB}"):
        write(published, recipe(**{place: name}))
        with pytest.raises(RecipeError, match="the published recipe names the member"):
            with_places(published, {"mine": str(tmp_path)})


def test_a_path_that_exists_here_is_not_read(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories that are called like Hub models: the models are those of the Hub all the same."""
    for name in ("org/base", "org/adapter", "org/base@v1+org/adapter", "merge"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(model: ModelId) -> Path:
        asked.append((model.repo, model.revision, model.is_local))
        return Path("/cache") / model.repo

    monkeypatch.setattr(published_recipe, "directory_of", download)
    adapted = "org/base@v1+org/adapter"
    document = recipe(source="merge", slice_base="merge", member="merge", origin_base=adapted)
    write(published, document)
    placed = with_places(published, {"mine": str(tmp_path / "given")})
    assert set(placed.models) == {
        "/cache/org/base",
        "/cache/org/base+/cache/org/adapter",
        str(tmp_path / "given"),
        "/cache/merge",
    }
    assert placed.slices[1].parameter("op") == "merge"
    assert ("org/base", "v1", False) in asked
    assert not any(is_local for _, _, is_local in asked)


@pytest.mark.parametrize(
    "name",
    [
        "/dev/zero",
        "gains/../outside",
        "../../outside",
        "outside",
        "repair/../outside",
        "repair/.x",
        "repair/a/b",
        "repair/",
        "repair",
    ],
)
def test_a_map_lies_in_the_repository(published: Path, tmp_path: Path, name: str) -> None:
    (published / "outside").write_bytes(b"")
    (published / "repair" / ".x").write_bytes(b"")
    write(published, recipe(map=name))
    with pytest.raises(RecipeError, match="expected a file of the repository, repair/NAME or gains/NAME"):
        with_places(published, {"mine": str(tmp_path)})


def test_a_map_is_a_file_of_the_snapshots_own_storage(published: Path, tmp_path: Path) -> None:
    write(published, recipe(map="repair/a b.safetensors"))
    file = published / "repair" / "a b.safetensors"
    for make, message in (
        (lambda: None, "lacks repair/a b.safetensors, or it is no file"),
        (lambda: os.mkfifo(file), "lacks repair/a b.safetensors, or it is no file"),
        (lambda: file.symlink_to("/dev/zero"), "lacks repair/a b.safetensors, or it is no file"),
        (lambda: file.symlink_to(__file__), "a link that leaves the published model"),
    ):
        make()
        with pytest.raises(RecipeError, match=message):
            with_places(published, {"mine": str(tmp_path)})
        file.unlink(missing_ok=True)
    blobs = published.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "123").write_bytes(b"")
    file.symlink_to(os.path.relpath(blobs / "123", file.parent))
    placed = with_places(published, {"mine": str(tmp_path)})
    assert placed.slices[0].parameter("repair") == str(file)


def test_gains_are_files_of_the_repository(published: Path, tmp_path: Path) -> None:
    (published / "gains").mkdir()
    (published / "gains" / "norms.safetensors").write_bytes(b"")
    document = recipe()
    gains = {"gains": "gains/norms.safetensors", "gains_digest": "0" * 16}
    document["parameters"] |= gains
    document["slices"][0]["parameters"] |= gains
    write(published, document)
    placed = with_places(published, {"mine": str(tmp_path)})
    file = str(published / "gains" / "norms.safetensors")
    assert (placed.parameters.gains, placed.slices[0].parameter("gains")) == (file, file)
    document["parameters"]["gains"] = "/dev/zero"
    write(published, document)
    with pytest.raises(RecipeError, match="names the file '/dev/zero'"):
        with_places(published, {"mine": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "null", "config.json: expected an object, found null"),
        ("config.json", "{", "config.json: cannot be read: no valid JSON"),
        ("config.json", "[" * 100_000, "config.json: lists and objects are nested more than 64 deep"),
        ("config.json", None, "config.json: no such file"),
        ("model.safetensors.index.json", "[]", "model.safetensors.index.json: "),
        (
            "model.safetensors.index.json",
            '{"metadata": {}, "weight_map": {"x": 5}}',
            "model.safetensors.index.json: ",
        ),
        (
            "model.safetensors.index.json",
            '{"metadata": {}, "weight_map": {"x": "../y.safetensors"}}',
            "model.safetensors.index.json: ",
        ),
        ("model.safetensors.index.json", '{"weight_map": ["x"]}', "model.safetensors.index.json: "),
        ("model.safetensors", "no header", "model.safetensors: cannot be read"),
    ],
)
def test_a_broken_model_is_named_before_anything_is_built(
    published: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, message: str
) -> None:
    monkeypatch.setattr(reproduce, "snapshot_download", lambda *_, **__: str(published))
    write(published, recipe())
    (published / "config.json").write_text("{}")
    (published / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    if "index" in name:
        (published / "model.safetensors").unlink()  # a single file would come first
    if content is None:
        (published / name).unlink()
    else:
        (published / name).write_text(content)
    with pytest.raises(ConfigError, match="evil/x is no whole model") as caught:
        reproduce.fetch("evil/x")
    assert message in str(caught.value)
    assert str(published) not in str(caught.value)


def test_the_card_of_a_member_is_bounded(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\nlanguage: [en]\n---\n# A model\n")
    assert parents._metadata(card) == {"license": "mit", "language": ["en"]}
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    for text in ("\n".join([*lines, "language: *a11"]), "[1]", "license: [", "- " * 50_000):
        card.write_text(f"---\n{text}\n---\n")
        assert parents._metadata(card) == {}


def test_a_mistake_in_a_published_recipe_is_one_sentence(published: Path) -> None:
    for content in ("slices: [", json.dumps(recipe() | {"odd": 1})):
        (published / "mergekit_config.yml").write_text(content)
        with pytest.raises(InputError):
            with_places(published, {})
