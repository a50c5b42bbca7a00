"""Whatever a stranger puts in a model directory ends in a sentence within two seconds."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from gptailor_merge.api.models import compose
from gptailor_merge.checking.soundness import examine
from gptailor_merge.errors import FamilyError
from gptailor_merge.hub.model_size import size_of
from gptailor_merge.models.checkpoint import depth_on_disk
from gptailor_merge.models.chosen_weights import INDEX, SINGLE
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.models.stranger_files import check_entries
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of

Damage = Callable[[Path], object]


@pytest.fixture
def model(family: dict[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(family["base"], tmp_path / "model"))


def config(**changes: Any) -> Damage:
    def write(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return write


def content(name: str, data: bytes) -> Damage:
    return lambda directory: (directory / name).write_bytes(data)


def fifo(name: str) -> Damage:
    def make(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)

    return make


def link(name: str, target: str) -> Damage:
    def make(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(target)

    return make


def weights(header: dict[str, Any], data: int = 0) -> Damage:
    text = json.dumps(header).encode()
    return content(SINGLE, len(text).to_bytes(8, "little") + text + bytes(data))


F32 = {"dtype": "F32", "shape": [1]}

BOMBS = {
    "fifo config": (fifo("config.json"), "config.json is no regular file, but a FIFO"),
    "fifo weights": (fifo(SINGLE), "model.safetensors is no regular file, but a FIFO"),
    "fifo tokenizer": (fifo("tokenizer.json"), "tokenizer.json is no regular file, but a FIFO"),
    "fifo index": (fifo(INDEX), "is no regular file, but a FIFO"),
    "device": (link("config.json", "/dev/zero"), "config.json is a link that leaves its directory"),
    "link": (link("chat_template.jinja", "/etc/passwd"), "chat_template.jinja is a link that leaves"),
    "weights link": (link(SINGLE, "/etc/passwd"), "model.safetensors is a link that leaves its directory"),
    "circle": (link("config.json", "config.json"), "config.json is a link that leaves its directory"),
    "null": (content("config.json", b"null"), "config.json: expected an object, found null"),
    "list": (content("config.json", b"[]"), "config.json: expected an object, found list"),
    "no utf-8": (content("config.json", b'{"a": "\xff"}'), "config.json: cannot be read: byte 0xff at 7"),
    "deep": (content("config.json", b"[" * 10**5), "nested more than 64 deep"),
    "less deep": (content("config.json", b'{"a":' * 90 + b"1" + b"}" * 90), "nested more than 64 deep"),
    "digits": (config(vocab_size=10**400), "config.json: a whole number of 1329 bits"),
    "more digits": (content("config.json", b'{"a": ' + b"9" * 5000 + b"}"), "cannot be read: no valid JSON"),
    "layers": (config(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000; no model has more"),
    "some layers": (config(num_hidden_layers=60_000), "60,000, and the weight files hold 48 tensors"),
    "text for layers": (config(num_hidden_layers="5"), "config.json: cannot be read: "),
    "no layers": (config(num_hidden_layers=None), "config.json: cannot be read: "),
    "labels": (config(num_labels=10**7), "num_labels is 10,000,000; no model has more"),
    "inner layers": (config(vision={"num_layers": 10**8}), "num_layers is 100,000,000; no model has more"),
    "experts": (
        config(model_type="mixtral", num_local_experts=65_000, num_experts_per_tok=2),
        "",
    ),
    "elsewhere": (config(configuration_files=["x.json"]), "configuration_files names other configs"),
    "no heads": (config(num_attention_heads=0), "config.json: cannot be read: "),
    "type": (config(model_type=["llama"]), "config.json: cannot be read: "),
    "module as dtype": (config(dtype="os"), "config.json: cannot be read: "),
    "quantised": (config(quantization_config={"quant_method": "mxfp4"}), ""),
    "quantised by a list": (config(quantization_config=[1]), "config.json: cannot be read: "),
    "long header": (
        content(SINGLE, (1 << 60).to_bytes(8, "little")),
        "its header has 1,152,921,504,606,846,976 ",
    ),
    "tensors": (content(SINGLE, (60 * 10**6).to_bytes(8, "little") + b"{"), "its header has 60,000,000 "),
    "out of range": (weights({"a": {**F32, "data_offsets": [0, 4]}}), "model.safetensors: cannot be read"),
    "overlapping": (
        weights({"a": {**F32, "data_offsets": [0, 4]}, "b": {**F32, "data_offsets": [2, 6]}}, 6),
        "model.safetensors: cannot be read",
    ),
    "negative": (weights({"a": {**F32, "data_offsets": [-4, 0]}}), "model.safetensors: cannot be read"),
    "huge shape": (
        weights({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}),
        "model.safetensors: cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BOMBS.values(), ids=BOMBS)
def test_bombs_are_sentences(family: dict[str, str], model: Path, damage: Damage, message: str) -> None:
    damage(model)
    begin = time.perf_counter()
    with pytest.raises(FamilyError) as caught:
        Family.load(family["math"], {"bomb": str(model)})
    assert message in str(caught.value)
    depth_on_disk(str(model))
    with suppress(FamilyError):
        assert not examine(model).sound or message == ""
    # Two seconds each on an idle machine; tests share theirs.
    assert time.perf_counter() - begin < 12


def test_kernels_are_never_fetched(
    family: dict[str, str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would import one, whichever of its keys names it."""

    asked: list[object] = []
    monkeypatch.setattr(
        "transformers.modeling_utils.lazy_import_flash_attention", lambda name, **_: asked.append(name)
    )
    keys = (
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "_experts_implementation",
    )
    auto_map = {"AutoConfig": "evil/repo--code.C", "AutoModelForCausalLM": "evil/repo--code.M"}
    config(**dict.fromkeys(keys, "kernels-community/flash-attn2"), auto_map=auto_map)(model)

    Family.load(str(model), {"math": family["math"]})
    compose(model, device="cpu")
    compose(Recipe.from_mapping(recipe_of({**family, "base": str(model)})), device="cpu")
    assert size_of(str(model)).layers == 5
    assert examine(model).sound
    assert asked == []


@pytest.mark.parametrize("where", ["templates", "file in templates"])
def test_links_to_chat_templates_are_refused(model: Path, tmp_path: Path, where: str) -> None:
    templates = model / "additional_chat_templates"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jinja").write_text("secret")
    if where == "templates":
        templates.symlink_to(tmp_path / "elsewhere")
    else:
        templates.mkdir()
        (templates / "a.jinja").symlink_to(tmp_path / "elsewhere" / "a.jinja")
    with pytest.raises(FamilyError, match="is a link that leaves its directory"):
        load_tokenizer(model)


def test_links_inside_a_directory_and_into_the_cache_are_files(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole directory may be a link, too."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(family["base"], blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (snapshot / "same.json").symlink_to("config.json")
    (tmp_path / "named").symlink_to(snapshot)
    for directory in (snapshot, tmp_path / "named"):
        check_entries(directory)
        assert Family.load(str(directory), {}).depth == 5
    copy = tmp_path / "copy"
    shutil.copytree(snapshot, copy, symlinks=True)
    with pytest.raises(FamilyError, match="is a link that leaves its directory"):
        check_entries(copy)
    (copy / "config.json").unlink()
    for file in copy.iterdir():
        file.unlink()
        file.symlink_to(blobs / file.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "models--a--b"))
    check_entries(copy)


def test_a_model_without_a_tokenizer_is_named(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FamilyError, match=r"model: no tokenizer; copy tokenizer\.json and"):
        load_tokenizer(model)
