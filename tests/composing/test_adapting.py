"""The adapter of a recipe: the same model by every way, peft's own sum, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from gptailor_merge.composing.adapter_places import with_adapter
from gptailor_merge.composing.adapting import load_adapter
from gptailor_merge.composing.editing import save_gains, save_map
from gptailor_merge.composing.norms import with_gains
from gptailor_merge.planning.resolve import plan
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.recipe.plan import NORMS, Edit
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.cuts import with_edit
from gptailor_merge.testing.three_models import assert_three_equal, compose
from tests.composing.test_norms import DEPTH, document, gains_of
from tests.zoo import config_of, write_family

# peft 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TARGETS = {
    "llama": ["q_proj", "down_proj", "gate_proj"],
    "qwen3": ["o_proj", "up_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}


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
