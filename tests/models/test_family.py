from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from gptailor_merge.errors import FamilyError, RecipeError
from gptailor_merge.models.checkpoint import ModelId, depth_on_disk
from gptailor_merge.models.family import Family
from gptailor_merge.planning.check import check, check_with_family
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import DEPTH, VOCABULARY, MakeFamily, recipe_of, write_member
from tests.zoo import write_family as write_zoo


def load(family: dict[str, str]) -> Family:
    return Family.load(family["base"], {n: m for n, m in family.items() if n != "base"})


def test_headers_and_configs_are_read(family: dict[str, str]) -> None:
    loaded = load(family)
    assert [member.name for member in loaded.members] == ["base", "math", "code"]
    assert loaded.depth == DEPTH
    assert not loaded.tied
    assert loaded.base.layers_prefix == "model.layers."
    assert set(loaded.base.outer_tensors) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    header = loaded.base.headers["model.layers.1.self_attn.k_proj.weight"]
    assert (header.dtype, header.shape) == ("BF16", (8, 16))


def test_parameters_are_counted(family: dict[str, str]) -> None:
    loaded = load(family)
    full = sum(torch.Size(h.shape).numel() for h in loaded.base.headers.values())
    assert loaded.parameters(range(DEPTH)) == full
    assert loaded.parameters([0, 1, 3]) == full - 2 * loaded.layer_sizes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4}, "other ({path}): num_hidden_layers is 4, the base has 5; a family shares them"),
        ({"width": 32}, "tensor model.layers.0.input_layernorm.weight has the shape [32], the base's [16]"),
        ({"tied": True}, "tie_word_embeddings is True, the base has False"),
    ],
)
def test_what_does_not_fit_is_named(
    family: dict[str, str], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    other = write_member(tmp_path / "other", 9, **options)  # type: ignore[arg-type]
    with pytest.raises(FamilyError) as caught:
        Family.load(family["base"], {"other": str(other)})
    assert message.format(path=other) in str(caught.value)


def test_a_variant_may_have_more_tokens(family: dict[str, str], tmp_path: Path) -> None:
    padded = str(write_member(tmp_path / "padded", 9, vocabulary=VOCABULARY + 1))
    grown = {**family, "math": padded}
    check_with_family(Recipe.from_mapping(recipe_of(grown)))
    with pytest.raises(RecipeError, match=r"has a vocabulary of 65, and .*base, whose tokenizer"):
        check_with_family(Recipe.from_mapping(recipe_of(grown, parameters={"head": padded})))


def test_a_tied_head_cannot_differ_from_the_embeddings(make_family: MakeFamily) -> None:
    tied = make_family(tied=True)
    with pytest.raises(RecipeError, match="this architecture's head is its embedding matrix"):
        check_with_family(Recipe.from_mapping(recipe_of(tied, parameters={"head": tied["math"]})))


def test_layers_trained_with_other_settings_are_a_warning(family: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(family["math"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    (warning,) = Family.load(family["base"], {"other": str(other)}).warnings
    assert warning.startswith("other was trained with rms_norm_eps = 0.5; in the pruned model its layers run")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: shutil.rmtree(d), "neither a directory here nor"),
        (lambda d: (d / "config.json").unlink(), "no config.json; expected a transformers model directory"),
        (lambda d: (d / "model.safetensors").unlink(), "no *.safetensors file; other formats are not read"),
        (lambda d: (d / "model.safetensors").write_bytes(b"broken!!"), "model.safetensors: cannot be read"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: cannot be read"),
    ],
)
def test_unreadable_members_are_named(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it: object, message: str
) -> None:
    shutil.copytree(family["math"], tmp_path / "math")
    break_it(tmp_path / "math")  # type: ignore[operator]
    with pytest.raises(FamilyError) as caught:
        Family.load(family["base"], {"math": str(tmp_path / "math")})
    if "neither" in message:
        assert "no such directory" in str(caught.value)
    else:
        assert message in str(caught.value)


def test_names_of_models() -> None:
    assert ModelId.parse("org/name@v1.0") == ModelId("org/name@v1.0", "org/name@v1.0", is_local=False)
    assert (ModelId.parse("org/name@v1.0").repo, ModelId.parse("org/name@v1.0").revision) == (
        "org/name",
        "v1.0",
    )
    assert ModelId.parse("org/name").revision is None
    assert ModelId.parse("/nowhere/at/all").is_local


def test_a_path_with_an_at_sign_is_a_path(family: dict[str, str], tmp_path: Path) -> None:
    odd = tmp_path / "me@work+home"
    shutil.copytree(family["base"], odd)
    assert ModelId.parse(str(odd)).is_local
    assert depth_on_disk(str(odd)) == DEPTH


def test_layer_ranges_are_checked_against_local_configs(family: dict[str, str]) -> None:
    document = recipe_of(family)
    document["slices"][-1]["sources"][0]["layer_range"] = [4, 6]  # type: ignore[index]
    with pytest.raises(RecipeError, match=rf"layer out of range, found \[4, 6\]; .* has {DEPTH} layers"):
        check(Recipe.from_mapping(document))


def test_checking_needs_no_network() -> None:
    names = {"base": "org/base", "math": "org/math", "code": "org/code"}
    assert len(check(Recipe.from_mapping(recipe_of(names))).slots) == 4
    assert depth_on_disk("org/base") is None


def test_sharded_checkpoints_are_read(family: dict[str, str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(family["math"], dtype="auto")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len([f for f in os.listdir(tmp_path) if f.endswith(".safetensors")]) > 1
    sharded = Family.load(family["base"], {"math": str(tmp_path)}).by_name("math")
    whole = load(family).by_name("math")
    assert sharded is not None
    assert whole is not None
    assert {n: h.shape for n, h in sharded.headers.items()} == {n: h.shape for n, h in whole.headers.items()}


def test_members_whose_layers_are_of_other_kinds_do_not_fit(tmp_path: Path) -> None:
    family = write_zoo(tmp_path, "qwen3")
    config_file = tmp_path / "math" / "config.json"
    config = json.loads(config_file.read_text())
    config["layer_types"][0] = "full_attention"
    config_file.write_text(json.dumps(config))
    with pytest.raises(FamilyError, match="layer_types differs from the base's, so its layers are of other"):
        load(family)


def broken(directory: Path, **changes: object) -> str:
    """The directory, after its config.json was changed."""
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"] * 3}, "config.json: cannot be read"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries, the model has 8 layers"),
        ({"intermediate_size": 32}, "by config.json it should have [32, 16]"),
        ({"attention_bias": True}, "the checkpoint has no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised (mxfp4)"),
    ],
)
def test_configs_that_contradict_their_checkpoint_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    family = write_zoo(tmp_path, "smollm3", tie_word_embeddings=False)
    with pytest.raises(FamilyError) as caught:
        Family.load(broken(Path(family["base"]), **changes), {})
    assert message in str(caught.value)


def test_local_models_are_compared_when_a_recipe_is_checked(family: dict[str, str], tmp_path: Path) -> None:
    other = str(write_member(tmp_path / "other", 9, width=32))
    with pytest.raises(FamilyError, match=r"has the shape \[32\], the base's \[16\]"):
        check(Recipe.from_mapping(recipe_of({**family, "math": other})))
    with pytest.raises(
        RecipeError, match=r"slices\[0\].sources\[0\].model: no such directory, found '.*gone'"
    ):
        check(Recipe.from_mapping(recipe_of({**family, "math": str(tmp_path / "gone")})))
