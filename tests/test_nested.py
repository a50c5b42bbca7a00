"""Language models inside others: their layers are pruned and merged, and the whole model is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from gptailor_merge.checking.soundness import examine
from gptailor_merge.composing.prefixes import advance, head
from gptailor_merge.errors import InputError
from gptailor_merge.host.exporting import export
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.checkpoint import depth_on_disk
from gptailor_merge.models.family import Family
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.testing.three_models import IDS, assert_three_equal, compose
from tests.nested_zoo import NESTED, cut_by_hand, inputs_with_image, write_nested_family
from tests.test_architectures import by_stock_mergekit


def pruning(family: dict[str, str], **parameters: Any) -> Recipe:
    """Remove, select and merge; see cut_by_hand."""

    def part(member: str, first: int, last: int, op: str) -> dict[str, Any]:
        return {
            "sources": [{"model": family[member], "layer_range": [first, last]}],
            "parameters": {"op": op},
        }

    merged = [
        {"model": family[member], "layer_range": [2, 3], "parameters": {"weight": 0.6}}
        for member in ("math", "code")
    ]
    slices = [
        part("math", 0, 1, "select"),
        part("base", 1, 2, "remove"),
        {"sources": merged, "parameters": {"op": "merge", "method": "task_arithmetic"}},
        part("base", 3, 4, "remove"),
        part("code", 4, 6, "select"),
    ]
    top = {"merge_method": "tailor", "base_model": family["base"], "dtype": "float32", "out_dtype": "float32"}
    return Recipe.from_mapping({**top, "slices": slices, "parameters": parameters})


@pytest.mark.parametrize("name", NESTED)
def test_the_whole_model_is_written_with_its_language_model_pruned(name: str, tmp_path: Path) -> None:
    family = write_nested_family(tmp_path, name)
    out = tmp_path / "out"
    composed = assert_three_equal(pruning(family), out, by_stock_mergekit)
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype="auto").eval()
    assert [type(loaded).__name__] == loaded.config.architectures
    assert loaded.config.get_text_config().num_hidden_layers == 4
    expected = cut_by_hand(family)
    inputs = inputs_with_image(name)
    with torch.inference_mode():
        whole = expected(**inputs).logits
        for model in (composed, loaded):
            torch.testing.assert_close(model(**inputs).logits, whole, rtol=1e-5, atol=1e-5)
        other = {**inputs, "pixel_values": -inputs["pixel_values"]}
        assert not torch.allclose(loaded(**other).logits, whole, atol=1e-3)  # it sees the image
    for model in (composed, loaded):
        for given in (inputs, {"input_ids": torch.tensor([[3, 14, 15]])}):
            made = [
                model.generate(
                    **given, max_new_tokens=4, do_sample=False, eos_token_id=None, use_cache=cached
                )
                for cached in (True, False)
            ]
            assert made[0].shape[1] == given["input_ids"].shape[1] + 4
            assert torch.equal(*made)
    names = load_file(Path(family["base"]) / "model.safetensors").keys()
    inner = {name.replace(f".{i}.", ".*.") for name in names for i in range(10) if f".{i}." in name}
    for written in load_file(out / "model.safetensors"):
        places = {written.replace(f".{i}.", ".*.") for i in range(10) if f".{i}." in written}
        assert written in names or places & inner, written
    assert json.loads((out / "processor_config.json").read_text()) == {"of": "base"}
    assert (out / "preprocessor_config.json").exists()
    assert "num_hidden_layers" not in json.loads((out / "config.json").read_text())


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_nested_family(tmp_path_factory.mktemp("mistral3"), "mistral3")


def tower(directory: Path | str) -> dict[str, torch.Tensor]:
    tensors = load_file(Path(directory) / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("vision", "multi"))}


def test_the_rest_comes_from_a_chosen_member_or_a_merge(mistral: dict[str, str], tmp_path: Path) -> None:
    recipe = pruning(mistral, embeddings=mistral["math"], rest=mistral["code"])
    plan = materialize(recipe, tmp_path / "code")
    theirs = tower(mistral["code"])
    written = tower(tmp_path / "code")
    assert len(theirs) == len(written) == 24
    assert all(torch.equal(tensor.float(), written[name]) for name, tensor in theirs.items())
    again = recipe_of(plan, 6)
    assert again.parameters.rest == recipe.parameters.rest
    assert check_with_family(again)[0].digest == plan.digest
    assert plan.digest != check_with_family(pruning(mistral, embeddings=mistral["math"]))[0].digest
    half = {"method": "linear", "weights": {"base": 0.5, mistral["code"]: 0.5}}
    assert_three_equal(pruning(mistral, rest=half), tmp_path / "half")
    first = tower(mistral["base"])
    for name, tensor in tower(tmp_path / "half").items():
        torch.testing.assert_close(tensor, (first[name].float() + theirs[name].float()) / 2)
    assert examine(tmp_path / "half").sound


def test_checkpoints_of_another_age_fit_together_and_keep_the_names_of_the_base(
    mistral: dict[str, str], tmp_path: Path
) -> None:
    """transformers 4.52 wrote the names that models have in memory today."""
    new = Path(shutil.copytree(mistral["base"], tmp_path / "new"))
    model = AutoModelForImageTextToText.from_pretrained(new, dtype="auto")
    save_file(
        {k: v.clone() for k, v in model.state_dict().items()}, new / "model.safetensors", {"format": "pt"}
    )
    for base, prefix in ((str(new), "model.language_model.layers."), (None, "language_model.model.layers.")):
        family = {**mistral, "base": base or mistral["base"], "math": mistral["math"] if base else str(new)}
        out = tmp_path / prefix
        assert_three_equal(pruning(family), out, by_stock_mergekit)
        assert f"{prefix}3.mlp.up_proj.weight" in load_file(out / "model.safetensors")


def test_scores_are_those_of_the_whole_model_on_text(mistral: dict[str, str]) -> None:
    model = compose(pruning(mistral))
    (state,) = advance(model, IDS, None, range(4), {3})
    with torch.inference_mode():
        torch.testing.assert_close(head(model, IDS, state), model(input_ids=IDS).logits)


def test_what_does_not_go_together_is_refused_in_a_sentence(
    mistral: dict[str, str], family: dict[str, str], tmp_path: Path
) -> None:
    text = {"base": family["base"], "math": family["math"], "code": family["code"]}
    document = pruning(mistral).to_mapping()
    slices = [{"sources": [{"model": text["base"], "layer_range": [0, 3]}], "parameters": {"op": "select"}}]
    alone = {**document, "base_model": text["base"], "slices": slices, "parameters": {"rest": text["math"]}}
    with pytest.raises(InputError, match=r"parameters\.rest.*llama has nothing beside its language model"):
        check_with_family(Recipe.from_mapping(alone))
    with pytest.raises(InputError, match="a family shares them"):
        Family.load(mistral["base"], {"text": text["base"]})
    plan, of_plan = check_with_family(pruning(mistral))
    with pytest.raises(InputError, match="mergekit divides mistral3 into modules"):
        export(plan, of_plan, tmp_path)


def test_the_depth_is_read_wherever_a_config_states_it(mistral: dict[str, str], tmp_path: Path) -> None:
    assert depth_on_disk(mistral["base"]) == 6
    # Qwen2-VL's own files hold the language model's keys beside those of the whole.
    flat = {"model_type": "qwen2_vl", "num_hidden_layers": 28, "vision_config": {"depth": 2}}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert depth_on_disk(str(tmp_path)) == 28
