"""The adapter of a recipe: the same model by every way, peft's own sum, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file, save_file

from gptailor_merge.api.repairs import repair
from gptailor_merge.api.tunings import tune
from gptailor_merge.cli.recipe_table import differences, rows
from gptailor_merge.composing.adapter_places import with_adapter
from gptailor_merge.composing.adapting import adapter_digest, load_adapter, public_config
from gptailor_merge.composing.editing import save_gains, save_map
from gptailor_merge.composing.norms import with_gains
from gptailor_merge.composing.prefixes import common, path_of
from gptailor_merge.errors import RecipeError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.planning.check import check
from gptailor_merge.planning.resolve import plan
from gptailor_merge.planning.slot_replacement import rewritten, with_plan
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.recipe.plan import NORMS, Edit
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.cuts import with_edit
from gptailor_merge.testing.three_models import assert_three_equal, compose
from tests.composing.test_norms import DEPTH, document, gains_of
from tests.conftest import MakeFamily
from tests.conftest import recipe_of as small_document
from tests.host.test_exporting import write_plain
from tests.host.test_hook import assert_same_weights
from tests.zoo import config_of, write_family

# peft 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TARGETS = {
    "llama": ["q_proj", "down_proj", "gate_proj"],
    "qwen3": ["o_proj", "up_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}
PATH = "model.layers.1.self_attn.q_proj"
DOWN = f"base_model.model.{PATH}.lora_A.weight"


def write_adapter(recipe: Recipe, directory: Path, targets: list[str], **settings: Any) -> Path:
    """Writes an adapter of random numbers for the model of a recipe, as peft's save_pretrained does."""
    torch.manual_seed(5)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, **settings)
    adapted: Any = peft.get_peft_model(compose(recipe).float(), config)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(directory))
    return directory


@pytest.mark.parametrize("name", TARGETS)
def test_an_adapter_is_added_after_all_other_edits(name: str, tmp_path: Path) -> None:
    """Also where a layer is repaired and has gains; the sum is that of peft, rounded once."""
    family = write_family(tmp_path, name)
    file, digest = save_gains(gains_of(config_of(name).to_dict(), (1, 3)), tmp_path, "gains.safetensors")
    edited = with_gains(plan(Recipe.from_mapping(document(family))), Edit(NORMS, digest, str(file)))
    map_file, map_digest = save_map(torch.randn(16, 16), tmp_path, "map.safetensors")
    edited = with_edit(edited, 2, Edit("mlp", map_digest, str(map_file)))
    before = recipe_of(edited, DEPTH)
    adapter = write_adapter(before, tmp_path / "adapter", TARGETS[name], use_rslora=True)
    recipe = with_adapter(before, adapter)
    healed = plan(recipe)
    assert plan(recipe_of(healed, DEPTH)) == healed
    assert healed.digest != edited.digest
    composed = assert_three_equal(recipe, tmp_path / "out")
    wide = compose(before.model_copy(update={"out_dtype": "float32"}))
    plain = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    merged: Any = peft.PeftModel.from_pretrained(wide, str(adapter)).merge_and_unload()
    factors = load_adapter(str(adapter), str(recipe.parameters.adapter_digest)).factors
    written = composed.state_dict()
    for key, tensor in merged.state_dict().items():
        assert torch.equal(tensor, plain[key]) == (key.removesuffix(".weight") not in factors)
        torch.testing.assert_close(written[key], tensor.bfloat16(), rtol=2**-7, atol=0)
    assert len(factors) == len(TARGETS[name]) * len(healed.slots)


@pytest.mark.parametrize(
    "dtypes",
    [
        {"dtype": "bfloat16"},
        {"dtype": None, "out_dtype": "float32"},
        {"dtype": "bfloat16", "out_dtype": "float16"},
    ],
    ids=str,
)
def test_the_sum_is_rounded_once_to_the_out_dtype(
    dtypes: dict[str, Any], make_family: MakeFamily, tmp_path: Path
) -> None:
    """Whatever dtype the merge has; tied embeddings stay tied, and a layer without factors as it was."""
    family = make_family(tied=True)
    part = {"sources": [{"model": family["math"], "layer_range": [1, 3]}], "parameters": {"op": "select"}}
    made = {**small_document(family, **dtypes), "slices": [part, part]}
    before = Recipe.from_mapping(made)
    adapter = write_adapter(before, tmp_path / "adapter", ["v_proj"], layers_to_transform=[0, 2])
    recipe = with_adapter(before, adapter)
    assert recipe.out_dtype == dtypes.get("out_dtype", "bfloat16")
    composed: Any = assert_three_equal(recipe, tmp_path / "out")
    assert composed.lm_head.weight is composed.model.embed_tokens.weight
    first, second, third, last = (layer.self_attn.v_proj.weight for layer in composed.model.layers)
    stored: Any = compose(before)
    assert torch.equal(second, last)
    assert torch.equal(second, stored.model.layers[1].self_attn.v_proj.weight.to(second.dtype))
    down, up = load_adapter(str(adapter), str(recipe.parameters.adapter_digest)).factors[
        "model.layers.0.self_attn.v_proj"
    ]
    weight = stored.model.layers[0].self_attn.v_proj.weight.double() + up.double() @ down.double() * (5 / 3)
    assert torch.equal(first, weight.float().to(first.dtype))
    assert not torch.equal(first, third)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def healed(llama: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Six layers with an adapter on q_proj; nobody may write into its directory."""
    before = Recipe.from_mapping(document(llama))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapter = write_adapter(before, tmp_path_factory.mktemp("healed") / "adapter", ["q_proj"])
    return with_adapter(before, adapter)


def adapter_in(recipe: Recipe) -> Path:
    assert recipe.parameters.adapter is not None
    return Path(recipe.parameters.adapter)


def without(recipe: Recipe) -> Recipe:
    return recipe.model_copy(
        update={"parameters": recipe.parameters.model_copy(update={"adapter": None, "adapter_digest": None})}
    )


def test_mergekit_yaml_and_merge_find_the_adapter_beside_the_recipe(healed: Recipe, tmp_path: Path) -> None:
    shutil.copytree(adapter_in(healed), tmp_path / "there" / "healed" / "adapter")
    file = tmp_path / "there" / "recipe.yml"
    named = healed.parameters.model_copy(update={"adapter": "healed/adapter"})
    file.write_text(healed.model_copy(update={"parameters": named}).to_yaml())
    done = CliRunner().invoke(mergekit_yaml, [str(file), str(tmp_path / "stock"), "--quiet"])
    assert done.exit_code == 0, done.output
    materialize(Recipe.load(file), tmp_path / "ours", file=file)
    assert_same_weights(tmp_path / "stock", tmp_path / "ours")
    # The recipe beside the model says where the adapter is.
    assert plan(Recipe.load(tmp_path / "ours" / "mergekit_config.yml")) == plan(healed)
    assert_three_equal(Recipe.load(tmp_path / "ours" / "mergekit_config.yml"), tmp_path / "again")


def test_the_digest_is_of_the_adapter_and_not_of_where_it_was_trained(healed: Recipe, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter_in(healed), tmp_path / "copy")
    (copy / "README.md").unlink()
    (copy / "adapter_config.json").write_text(public_config(adapter_in(healed)))
    config = json.loads((copy / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert adapter_digest(copy) == healed.parameters.adapter_digest
    assert plan(with_adapter(healed, copy)) == plan(healed)
    assert with_adapter(healed, copy, name="copy").parameters.adapter == "copy"
    (copy / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 6}))
    assert plan(with_adapter(healed, copy)).digest != plan(healed).digest


def test_an_adapter_belongs_to_its_layers(healed: Recipe) -> None:
    """Plans with other adapters share no step; a recipe whose slots change loses its adapter."""
    resolved = plan(healed)
    assert common(path_of(resolved), path_of(plan(without(healed)))) == 0
    assert [slot.edits[-1].position for slot in resolved.adapted_slots] == list(range(7))
    assert rewritten(healed, resolved.slots) == with_plan(healed, resolved) == healed
    changed = (resolved.slots[1], *resolved.slots[1:])
    assert rewritten(healed, changed).parameters.adapter is None
    assert with_plan(healed, plan(without(healed))).parameters.adapter is None


def test_a_healed_recipe_is_drawn_and_compared(healed: Recipe) -> None:
    assert rows(healed)[-1].how == "by a LoRA adapter of rank 3 on q_proj (672 numbers)"
    gone = healed.model_copy(update={"parameters": healed.parameters.model_copy(update={"adapter": "gone"})})
    assert rows(gone)[-1].how == "by a LoRA adapter"
    digest = healed.parameters.adapter_digest
    assert differences(healed, without(healed)) == [f"adapter: {digest} -> not given"]


def test_what_comes_before_healing_refuses_a_healed_recipe(
    healed: Recipe, texts: dict[str, str], tmp_path: Path
) -> None:
    for step in (repair, tune):
        with pytest.raises(RecipeError, match=r"parameters\.adapter: the recipe is healed, which comes last"):
            step(healed, [texts["sums"]], tmp_path / "out")
    with pytest.raises(
        RecipeError, match="write the model with gptailor merge, or export the recipe without"
    ):
        write_plain(healed, tmp_path / "plain")


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


def rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, _: c.update(peft_type="IA3"), "adapter_config.json: peft_type: expected LORA, found 'IA3'"),
        (lambda c, _: c.update(use_dora=True), "use_dora: expected False, found True; only plain LoRA"),
        (lambda c, _: c.update(bias="all"), "bias: expected 'none', found 'all'"),
        (lambda c, _: c.update(modules_to_save=["lm_head"]), "modules_to_save: expected None, found ['lm_head']"),
        (lambda c, _: c.update(rank_pattern={"q_proj": 2}), "rank_pattern: expected {}, found"),
        (lambda c, _: c.update(init_lora_weights="pissa"), "init_lora_weights: 'pissa' changes the model's"),
        (lambda c, _: c.update(colour=1), "colour: peft"),
        (lambda c, _: c.update(lora_alpha="5"), "lora_alpha: expected a number, found '5'"),
        (lambda c, _: c.update(lora_alpha=float("nan")), "lora_alpha: expected a number, found nan"),
        (lambda c, _: c.update(target_modules="(.+)+_proj"), "target_modules: expected a list of names, found"),
        (lambda c, _: c.update(r="3"), "adapter_config.json: "),
        (lambda c, _: c.update(r=2), "q_proj.lora_A.weight in {weights} is [3, 16]; by r in adapter_config.json expected [2, in]"),
        (lambda c, _: c.update(target_modules=["q_proj", "k_proj"]), "not trained on this pruned model: model"),
        (lambda c, _: c.update(target_modules=["c_proj"]), "not trained on this pruned model: peft cannot merge"),
        (lambda _, t: t.clear(), "{weights} holds no tensors"),
        (lambda _, t: t.pop(DOWN), "{weights} lacks lora_A.weight of " + PATH),
        (lambda _, t: t.update({DOWN: t[DOWN] / 0}), DOWN + " in {weights} has values that are not finite"),
        (lambda _, t: t.update({DOWN: t[DOWN][:, :8]}), f"{PATH}.lora_A.weight has the shape [3, 8]"),
        (lambda _, t: t.update(bias=t[DOWN] + 1), "{weights} has bias; expected lora_A.weight and lora_B.weight"),
        (lambda _, t: rename(t, "layers.6", "layers.7"), "layers.7.self_attn.q_proj, and the pruned model has 7"),
        (lambda _, t: rename(t, PATH, "lm_head"), "changes lm_head, and the adapter of a recipe changes"),
        (lambda _, t: rename(t, PATH, f"{PATH}2"), f"{PATH}2.lora_"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused(
    change: Change, message: str, healed: Recipe, tmp_path: Path
) -> None:
    copy = shutil.copytree(adapter_in(healed), tmp_path / "adapter")
    config, weights = copy / "adapter_config.json", copy / "adapter_model.safetensors"
    settings, tensors = json.loads(config.read_text()), load_file(weights)
    change(settings, tensors)
    config.write_text(json.dumps(settings))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)
    update = {"adapter": str(copy), "adapter_digest": adapter_digest(copy)}
    made = healed.model_copy(update={"parameters": healed.parameters.model_copy(update=update)})
    with pytest.raises(RecipeError) as caught:
        check(made)
    (problem,) = caught.value.problems
    assert message.replace("{weights}", str(weights)) in problem.message
    assert (problem.where, str(copy) in problem.message) == ("parameters.adapter", True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"adapter": "a"}, "parameters: adapter_digest is missing; an adapter is a directory of peft and its"),
        ({"adapter_digest": "0"}, "parameters: adapter is missing; an adapter is"),
        ({"adapter": 1, "adapter_digest": "0"}, "parameters.adapter: expected a text, in quotes, found 1"),
        ({"adapter": "a", "adapter_digest": "0"}, "parameters.adapter: no such adapter, found 'a'; expected a"),
        ({"adapter": "{here}", "adapter_digest": "0"}, "and the recipe was made with 0"),
        ({"adapter": "{here}", "adapter_digest": "0", "out_dtype": None}, "out_dtype: is missing; a recipe with"),
        ({"adaptor": "a"}, "did you mean 'adapter'?"),
    ],
)  # fmt: skip
def test_mistakes(parameters: dict[str, Any], message: str, healed: Recipe) -> None:
    given = {
        key: str(adapter_in(healed)) if value == "{here}" else value for key, value in parameters.items()
    }
    made = {**without(healed).to_mapping(), "out_dtype": given.pop("out_dtype", "bfloat16")}
    with pytest.raises(RecipeError) as caught:
        check(Recipe.from_mapping({**made, "parameters": given}))
    assert message in str(caught.value)
