"""The weights of a directory are those that transformers loads, in every place that reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gptailor_merge.checking.weight_files import StoredWeights
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.checkpoint import headers_in
from gptailor_merge.models.chosen_weights import INDEX, SINGLE, choose, choose_among
from gptailor_merge.models.family import Family
from gptailor_merge.planning.check import check
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal
from tests.conftest import recipe_of

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NAME = "model.layers.0.mlp.up_proj.weight"

Damage = Callable[[Path], object]


def write_shards(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes two shards with an index beside what is there."""
    names = sorted(tensors)
    parts = (names[::2], names[1::2])
    for file, part in zip(SHARDS, parts, strict=True):
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in zip(SHARDS, parts, strict=True) for name in part}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shard(directory: Path) -> None:
    write_shards(directory, load_file(directory / SINGLE))
    (directory / SINGLE).unlink()


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def both(directory: Path) -> None:
    """An older save in shards, beside the single file of a newer one."""
    write_shards(directory, {name: t + 1 for name, t in load_file(directory / SINGLE).items()})


def stale_index(directory: Path) -> None:
    """What save_pretrained leaves of an older save in shards."""
    both(directory)
    for name in SHARDS:
        (directory / name).unlink()


def twice(directory: Path) -> None:
    """A shard that still holds a tensor which the index has moved to the other; the last one counts."""
    shard(directory)
    first, last = (load_file(directory / name) for name in SHARDS)
    last |= {name: tensor + 1 for name, tensor in first.items()}
    save_file(last, directory / SHARDS[1], metadata={"format": "pt"})


def explicit(directory: Path) -> None:
    """A config that names the weights; the usual ones are others."""
    tensors = load_file(directory / SINGLE)
    save_file({name: t + 1 for name, t in tensors.items()}, directory / "new.safetensors")
    edit(directory / "config.json", transformers_weights="new.safetensors")


def other_precision(directory: Path) -> None:
    tensors = load_file(directory / SINGLE)
    save_file({name: t + 1 for name, t in tensors.items()}, directory / "model.fp16.safetensors")
    torch.save({name: t + 2 for name, t in tensors.items()}, directory / "pytorch_model.bin")


@pytest.fixture
def math(family: dict[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(family["math"], tmp_path / "math"))


@pytest.mark.parametrize("damage", [both, stale_index, twice, explicit, other_precision])
def test_every_reader_takes_what_transformers_takes(
    family: dict[str, str], math: Path, tmp_path: Path, damage: Damage
) -> None:
    damage(math)
    recipe = Recipe.from_mapping(recipe_of({**family, "math": str(math)}))
    composed = assert_three_equal(recipe, tmp_path / "out")  # merges by stock mergekit, too
    theirs = AutoModelForCausalLM.from_pretrained(math, dtype="auto").state_dict()
    assert torch.equal(composed.state_dict()[NAME].bfloat16(), theirs[NAME])
    assert set(headers_in(math)) == set(theirs)


@pytest.mark.parametrize("damage", [both, stale_index])
def test_stock_mergekit_reads_them_for_our_recipes(
    family: dict[str, str], math: Path, tmp_path: Path, damage: Damage
) -> None:
    expected = load_file(math / SINGLE)[NAME]
    damage(math)
    document = recipe_of({**family, "math": str(math)}, out_dtype="bfloat16")
    run_merge(MergeConfiguration.model_validate(document), str(tmp_path / "out"), MergeOptions(quiet=True))
    assert torch.equal(load_file(tmp_path / "out" / SINGLE)[NAME], expected)


def test_what_is_not_used_is_told(math: Path) -> None:
    both(math)
    other_precision(math)
    weights = StoredWeights.read(math)
    assert (weights.errors, list(weights.headers)) == ((), [SINGLE])
    names = ("model-00001-of-00002", "model-00002-of-00002", "model.fp16")
    listed = ", ".join(f"{name}.safetensors" for name in names)
    assert f"{listed}, {INDEX}: no part of the model; nothing loads it" in weights.remarks


def rename(old: str, new: str) -> Damage:
    return lambda directory: (directory / old).rename(directory / new)


def put_adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")


def index_with(**changes: object) -> Damage:
    def write(directory: Path) -> None:
        shard(directory)
        edit(directory / INDEX, **changes)

    return write


def without_index(directory: Path) -> None:
    shard(directory)
    (directory / INDEX).unlink()


def missing_shard(directory: Path) -> None:
    shard(directory)
    (directory / SHARDS[1]).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            without_index,
            f"neither {SINGLE} nor {INDEX}, and transformers loads nothing without one of them, ",
        ),
        (missing_shard, f"{SHARDS[1]} is missing, which {INDEX} names"),
        (rename(SINGLE, "model.fp16.safetensors"), "found model.fp16.safetensors; get the index"),
        (
            rename(SINGLE, "shard-00001-model-00001-of-00001.safetensors"),
            "a part of a distributed checkpoint",
        ),
        (put_adapter, "adapter_config.json lies beside model.safetensors, and transformers loads both"),
        (rename(SINGLE, "adapter_model.safetensors"), "no *.safetensors file"),
        (index_with(metadata=None), "metadata is missing, and transformers does not load it so"),
        (index_with(weight_map=[]), "expected an object weight_map from tensor to file"),
        (
            index_with(weight_map={"x": 3}),
            "weight_map: x: expected a safetensors file inside the directory, found 3",
        ),
        (index_with(weight_map={"x": "../math/a.safetensors"}), "found '../math/a.safetensors'"),
        (index_with(weight_map={"x": "/etc/a.safetensors"}), "found '/etc/a.safetensors'"),
        (
            lambda d: edit(d / "config.json", transformers_weights="../a.safetensors"),
            "transformers_weights: expected",
        ),
        (lambda d: edit(d / "config.json", transformers_weights="model.bin"), "found 'model.bin'"),
    ],
)
def test_what_transformers_would_not_load_is_refused_in_lint(
    family: dict[str, str], math: Path, damage: Damage, message: str
) -> None:
    damage(math)
    with pytest.raises(FamilyError) as caught:
        check(Recipe.from_mapping(recipe_of({**family, "math": str(math)})))
    assert message in str(caught.value)
    with pytest.raises(FamilyError):
        choose(math)


def test_a_directory_with_an_adapter_alone_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(FamilyError, match=r"holds a LoRA adapter and no model; name it MODEL\+ADAPTER"):
        choose(tmp_path)


def test_files_beside_the_model_are_no_part_of_it() -> None:
    names = [SINGLE, "consolidated.safetensors", "adapter_model.safetensors", "config.json"]
    assert choose_among(names, lambda name: {}, "org/model").files == (SINGLE,)


@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "v_head.summary.weight",
        "v_head.0.x",
    ],
)
def test_tensors_that_are_no_part_of_the_model_change_nothing(
    family: dict[str, str], math: Path, tmp_path: Path, name: str
) -> None:
    tensors = load_file(math / SINGLE)
    # float32, unlike the model: its dtype must not count either.
    save_file({**tensors, name: torch.ones(2)}, math / SINGLE, metadata={"format": "pt"})
    save_file({"tok_embeddings.weight": torch.ones(2)}, math / "consolidated.safetensors")
    members = Family.load(family["base"], {"math": str(math)}).members
    assert members[1].dtypes == {"BF16"}
    assert members[1].stored_tensors == set(tensors)
    composed = assert_three_equal(
        Recipe.from_mapping(recipe_of({**family, "math": str(math)})), tmp_path / "out"
    )
    assert torch.equal(composed.state_dict()[NAME].bfloat16(), tensors[NAME])


def test_only_the_model_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gptailor_merge.models import directories
    from gptailor_merge.models.checkpoint import ModelId

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    names = ["config.json", SINGLE, INDEX, "consolidated.safetensors", "original/model.safetensors"]
    names += ["fp16/model.safetensors", "adapter_model.safetensors", "tokenizer.json", "original/params.json"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **_: str(tmp_path / name))
    asked: list[list[str]] = []

    def download(repo: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    directories.directory_of(ModelId.parse("org/model"))
    assert sorted(asked[0]) == ["config.json", SINGLE, "tokenizer.json"]
