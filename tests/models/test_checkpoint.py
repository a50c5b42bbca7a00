"""Models as they come from the Hub: adapters, shards, other dtypes, more tokens, templates."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import constants
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptailor_merge.errors import FamilyError, RecipeError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.family import Family
from gptailor_merge.planning.check import check
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import assert_three_equal
from tests.conftest import VOCABULARY, MakeFamily, recipe_of, write_member

# peft 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def write_adapter(directory: Path, model: str, seed: int = 7) -> str:
    """A LoRA adapter with weights that change the model."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def adapted(family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A family whose variant math is the base with an adapter."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    adapter = write_adapter(tmp_path / "adapter", family["base"])
    return {**family, "math": f"{family['base']}+{adapter}"}


def test_an_adapter_is_a_variant(adapted: dict[str, str], tmp_path: Path) -> None:
    recipe = Recipe.from_mapping(recipe_of(adapted, dtype="float32", out_dtype="bfloat16"))
    check(recipe)
    assert not (tmp_path / "cache").exists()  # checking merges nothing
    assert_three_equal(recipe, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(adapted["base"], dtype="auto")
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(written[name], merged.state_dict()[name])
    assert not torch.equal(written[name], load_file(Path(adapted["base"]) / "model.safetensors")[name])


def test_stock_mergekit_merges_the_same_adapter(adapted: dict[str, str], tmp_path: Path) -> None:
    document = recipe_of(adapted)
    materialize(Recipe.from_mapping(document), tmp_path / "ours")
    options = MergeOptions(lora_merge_cache=str(tmp_path / "lora"), write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(dict(document)), str(tmp_path / "stock"), options)
    configuration = MergeConfiguration.model_validate(dict(document))
    with pytest.raises(RecipeError, match="only with --lora-merge-cache DIR; gptailor merge needs none"):
        run_merge(configuration, str(tmp_path / "no"), MergeOptions(quiet=True))
    ours, stock = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "stock"))
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in ours)


def test_an_adapter_that_was_trained_on_is_merged_again(adapted: dict[str, str], tmp_path: Path) -> None:
    first = Family.load(adapted["base"], {"math": adapted["math"]}).members[1].directory
    write_adapter(tmp_path / "adapter", adapted["base"], seed=8)
    second = Family.load(adapted["base"], {"math": adapted["math"]}).members[1].directory
    assert first != second
    one, other = (load_file(d / "model.safetensors") for d in (first, second))
    assert not torch.equal(*(w["model.layers.0.self_attn.q_proj.weight"] for w in (one, other)))


def test_what_is_no_adapter_is_refused(family: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"pickle")
    name = f"{family['base']}+{tmp_path / 'adapter'}"
    with pytest.raises(FamilyError, match=r"holds no adapter_config.json; expected a LoRA adapter of peft"):
        check(Recipe.from_mapping(recipe_of({**family, "math": name})))
    with pytest.raises(RecipeError, match="no such directory, found '/nowhere/at/all'"):
        check(Recipe.from_mapping(recipe_of({**family, "math": f"{family['base']}+/nowhere/at/all"})))


def write_peft(directory: Path, model: str, rows: int | None = None, **settings: Any) -> str:
    """An adapter of any settings, all its weights changed; returns `model+adapter`."""
    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if rows is not None:
        base.resize_token_embeddings(rows)
    config = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(base, peft.LoraConfig(**config))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(directory)
    torch.save(adapted.eval()(IDS).logits, directory / "logits")
    return f"{model}+{directory}"


IDS = torch.arange(12)[None]


@pytest.mark.parametrize(
    ("tied", "settings", "stays_tied"),
    [
        (False, {"modules_to_save": ["embed_tokens", "lm_head"], "use_dora": True}, False),
        (False, {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_rslora": True}, False),
        (
            False,
            {
                "trainable_token_indices": [1, 2],
                "bias": "all",
                "layers_to_transform": [1],
                "rank_pattern": {"q_proj": 4},
                "alpha_pattern": {"q_proj": 3},
            },
            False,
        ),
        (True, {"modules_to_save": ["embed_tokens"]}, False),
        (True, {"modules_to_save": ["lm_head"]}, False),
        (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        (True, {"trainable_token_indices": [1, 2]}, True),
    ],
)
def test_the_merged_model_is_the_one_that_was_trained(
    make_family: MakeFamily,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
    settings: dict[str, Any],
    stays_tied: bool,
) -> None:
    """A head that the adapter unties is one of the member's own, in its config and among its headers."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    base = make_family(tied=tied, dtype=torch.float32)["base"]
    member = Family.load(base, {"math": write_peft(tmp_path / "adapter", base, **settings)}).members[1]
    assert member.tied == stays_tied
    merged = AutoModelForCausalLM.from_pretrained(member.directory, dtype=torch.float32)
    torch.testing.assert_close(merged(IDS).logits, torch.load(tmp_path / "adapter" / "logits"))
    assert {n: h.shape for n, h in member.headers.items()} == {
        n: tuple(t.shape) for n, t in load_file(member.directory / "model.safetensors").items()
    }


@pytest.mark.parametrize(
    ("tied", "settings", "changes", "message"),
    [
        (False, {"rows": 66}, {}, r"lm_head has 66 rows, .*has 64; .*resize_token_embeddings\(66\)"),
        (
            False,
            {"rows": 66, "modules_to_save": ["embed_tokens"]},
            {},
            "embed_tokens has 66 rows|lm_head has 66",
        ),
        (True, {"target_modules": ["embed_tokens"]}, {}, "untie the model first, and name that"),
        (
            True,
            {"trainable_token_indices": {"lm_head": [1]}},
            {},
            "other tokens in the head than in the embed",
        ),
        (
            False,
            {"trainable_token_indices": [1]},
            {"trainable_token_indices": [64]},
            "names token 64, the model has",
        ),
        (False, {"lora_bias": True}, {}, "because the base layer has no bias"),
        (False, {"alora_invocation_tokens": [3]}, {}, "aLoRA does not support merging"),
        (False, {"layer_replication": [[0, 3], [2, 5]]}, {}, "it repeats layers"),
        (False, {"init_lora_weights": "pissa_niter_2"}, {}, "the change cannot be computed again"),
        (False, {}, {"r": 3}, r"lora_A.weight has the shape \[2, 16\], .* should have \[3, 16\]"),
        (False, {}, {"target_modules": ["q_proj", "v_proj"]}, "v_proj.lora_A.weight is missing in its file"),
        (False, {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["q_proj"]}, "has no place in"),
        (False, {}, {"target_modules": ["nowhere"]}, "not found in the base model"),
        (False, {}, {"peft_type": "NOTHING"}, "adapter_config.json cannot be read"),
    ],
)
def test_adapters_that_would_give_another_model_are_refused(
    make_family: MakeFamily,
    tmp_path: Path,
    tied: bool,
    settings: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    """The adapter's headers and config tell it, before a weight is loaded."""
    base = make_family(tied=tied, dtype=torch.float32)["base"]
    model = write_peft(tmp_path / "adapter", base, **settings)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(FamilyError, match=f"its adapter cannot be merged: .*({message})"):
        Family.load(base, {"math": model})


def test_the_tokenizer_beside_an_adapter_is_the_members(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    adapter = write_adapter(tmp_path / "adapter", family["base"])
    tokenizer = AutoTokenizer.from_pretrained(family["base"])
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)
    loaded = Family.load(family["base"], {"math": f"{family['base']}+{adapter}"})
    (warning,) = loaded.warnings
    assert "whose tokenizer the result has: 1 token more ('<new>' at 64)" in warning
    assert AutoTokenizer.from_pretrained(loaded.members[1].directory).get_vocab()["<new>"] == 64


def test_names_with_adapters() -> None:
    parsed = ModelId.parse("org/model@v1+org/adapter")
    assert (parsed.repo, parsed.revision, parsed.is_local) == ("org/model", "v1", False)
    assert parsed.adapter == ModelId.parse("org/adapter")
    assert parsed.model == ModelId.parse("org/model@v1")


def test_shards_of_any_dtype_fit_together(make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family()
    for name, dtype in (("math", torch.float16), ("code", torch.float32)):
        model = AutoModelForCausalLM.from_pretrained(make_family(dtype=dtype)[name], dtype="auto")
        model.save_pretrained(tmp_path / name, max_shard_size="10KB")
        family = {**family, name: str(tmp_path / name)}
    recipe = Recipe.from_mapping(recipe_of(family, dtype="float32", out_dtype="bfloat16"))
    assert_three_equal(recipe, tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_tokenizer_of_a_variant_with_more_tokens(
    make_family: MakeFamily, tied: bool, tmp_path: Path
) -> None:
    """Its embeddings, its head and its special tokens come with it."""
    family = make_family(tied=tied)
    grown = write_member(tmp_path / "grown", 9, vocabulary=VOCABULARY + 2, tied=tied)
    tokenizer = AutoTokenizer.from_pretrained(grown)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.chat_template = "{{ messages[0]['content'] }}<end>"
    tokenizer.save_pretrained(grown)
    for file in ("config.json", "generation_config.json"):
        said = json.loads((grown / file).read_text())
        (grown / file).write_text(json.dumps({**said, "eos_token_id": VOCABULARY}))
    family = {**family, "math": str(grown)}
    whole = {"embeddings": str(grown), "head": str(grown), "tokenizer": str(grown)}
    recipe = Recipe.from_mapping(recipe_of(family, parameters=whole))
    composed = assert_three_equal(recipe, tmp_path / "out")
    assert composed.get_input_embeddings().weight.shape[0] == VOCABULARY + 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (VOCABULARY + 2, VOCABULARY)
    assert composed.config.eos_token_id == VOCABULARY
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == VOCABULARY
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<end>"
    with pytest.raises(RecipeError, match="must come from members with vocabularies of one size"):
        check(Recipe.from_mapping(recipe_of(family, parameters={**whole, "embeddings": "base"})))


def test_the_tokenizer_is_the_bases_unless_asked(family: dict[str, str], tmp_path: Path) -> None:
    templated = tmp_path / "templated"
    shutil.copytree(family["math"], templated)
    tokenizer = AutoTokenizer.from_pretrained(templated)
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    tokenizer.save_pretrained(templated)
    family = {**family, "math": str(templated)}
    for number, (top, template) in enumerate(
        (
            ({}, None),
            ({"chat_template": "auto"}, tokenizer.chat_template),
            ({"chat_template": "{{ messages[0]['content'] }}?"}, "{{ messages[0]['content'] }}?"),
            ({"parameters": {"tokenizer": str(templated)}}, tokenizer.chat_template),
        )
    ):
        out = tmp_path / f"out{number}"
        materialize(Recipe.from_mapping(recipe_of(family, **top)), out)  # type: ignore[arg-type]
        assert AutoTokenizer.from_pretrained(out).chat_template == template
        assert (out / "generation_config.json").exists()


def test_a_revision_with_slashes_is_one_of_the_hub() -> None:
    """As that of a pull request; what has more slashes before it is a path."""
    assert not ModelId.parse("org/name@refs/pr/28").is_local
    assert ModelId.parse("models/org/name@refs").is_local
