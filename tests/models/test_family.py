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
from gptailor_merge.testing.three_models import assert_three_equal
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


def changed(family: dict[str, str], directory: Path, **settings: object) -> Family:
    """The base with a variant whose config.json has other settings; None leaves a setting out."""
    shutil.copytree(family["math"], directory)
    config = {**json.loads((directory / "config.json").read_text()), **settings}
    text = json.dumps({key: value for key, value in config.items() if value is not None})
    (directory / "config.json").write_text(text)
    return Family.load(family["base"], {"other": str(directory)})


def test_layers_trained_with_other_settings_are_a_warning(family: dict[str, str], tmp_path: Path) -> None:
    long = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
    loaded = changed(family, tmp_path / "other", rope_parameters=long, max_position_embeddings=256)
    assert loaded.warnings == (
        "other was trained with max_position_embeddings 256 instead of 64, rope_parameters.factor 4.0 instead "
        "of none, rope_parameters.original_max_position_embeddings 64 instead of none, "
        "rope_parameters.rope_theta 1000000.0 instead of 10000.0, rope_parameters.rope_type 'yarn' instead of "
        "'default'; the result has the base's, also for layers of other",
    )
    same = {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None, "use_mrope": False}
    assert changed(family, tmp_path / "same", **same, attention_dropout=0.1).warnings == ()


@pytest.mark.parametrize("tied", ["base", "other"])
def test_a_head_that_is_tied_in_one_member_only(
    family: dict[str, str], make_family: MakeFamily, tmp_path: Path, tied: str
) -> None:
    """Layers can be taken; a head cannot, nor embeddings that are no head."""
    base, other = family["base"], make_family(tied=True)["math"]
    if tied == "base":
        base, other = other, base
    members = {"base": base, "math": other, "code": base}
    recipe = Recipe.from_mapping(recipe_of(members, out_dtype="bfloat16"))
    (warning,) = Family.load(base, {"other": other}).warnings
    assert ("a head of its own (tie_word_embeddings is False)" in warning) == (tied == "base")
    assert_three_equal(recipe, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"parameters.head: .*take"):
        check(Recipe.from_mapping(recipe_of(members, parameters={"embeddings": other, "head": other})))


def with_tokens(family: dict[str, str], directory: Path, **names: str) -> str:
    """A copy of math whose tokenizer has other tokens: A="B" renames A."""
    shutil.copytree(family["math"], directory)
    file = directory / "tokenizer.json"
    document = json.loads(file.read_text())
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    file.write_text(json.dumps(document))
    return str(directory)


def test_other_tokens_behind_the_ids(family: dict[str, str], tmp_path: Path) -> None:
    other = with_tokens(family, tmp_path / "other", A="<|im_start|>", B="A")
    loaded = Family.load(family["base"], {"other": other})
    names = "id 33 is '<|im_start|>' and not 'A', id 34 is 'A' and not 'B'"
    assert loaded.warnings == (
        f"other has other tokens than base, whose tokenizer the result has: 2 other tokens behind the ids ({names}); "
        "scores of other on texts are of the tokens of base",
    )
    members = {**family, "math": other}
    half = {"method": "linear", "weights": {"base": 0.5, other: 0.5}}
    for parameters in ({"embeddings": other, "head": other}, {"head": other}, {"embeddings": half}):
        with pytest.raises(
            RecipeError, match="embeddings, head and tokenizer must come from members with the"
        ):
            check(Recipe.from_mapping(recipe_of(members, parameters=parameters)))
    whole = {"embeddings": other, "head": other, "tokenizer": other}
    warnings: list[str] = []
    check(Recipe.from_mapping(recipe_of(members, parameters=whole)), on_warning=warnings.append)
    # Now it is the others whose tokens the result does not have.
    assert [text.split(" has other tokens than ")[0] for text in warnings] == ["base", family["code"]]


def test_a_tokenizer_that_is_missing_or_of_other_files(family: dict[str, str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(family["math"], bare)
    (bare / "tokenizer.json").unlink()
    (warning,) = Family.load(family["base"], {"bare": str(bare)}).warnings
    assert warning.startswith("bare has no tokenizer that can be read, so its tokens are not compared")
    vocabulary = json.loads((Path(family["math"]) / "tokenizer.json").read_text())["model"]["vocab"]
    for name in ("first", "second"):
        shutil.copytree(bare, tmp_path / name)
        written = (
            vocabulary if name == "first" else {**vocabulary, "A": vocabulary["B"], "B": vocabulary["A"]}
        )
        (tmp_path / name / "vocab.json").write_text(json.dumps(written))
        (tmp_path / name / "merges.txt").write_text("#version: 0.2\n")
        settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": " ", "bos_token": " ", "eos_token": " "}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    (warning,) = Family.load(first, {"second": second}).warnings
    assert "2 other tokens behind the ids (id 33 is 'B' and not 'A'" in warning


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
