"""A tunable model predicts what its plan's model does, and the plan is one model by every way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing import norms
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.errors import FamilyError
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.planning.resolve import plan
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.passes import predictions_alone
from gptailor_merge.testing.three_models import IDS, assert_three_equal
from gptailor_merge.tuning.groups import Sharing
from gptailor_merge.tuning.tunable_model import TunableModel
from tests.test_architectures import pruning
from tests.zoo import DEPTH, write_family

CPU = torch.device("cpu")

TUNED: dict[str, Sharing] = {
    "llama": "layer",
    "qwen3": "tensor",
    "gemma3": "part",  # scales its embeddings, which are its head, and counts gains from one
    "olmo2": "tensor",
    "gpt_neox": "part",  # its norms and its linear maps have biases
    "cohere2": "layer",
}


@pytest.mark.parametrize("name", TUNED)
def test_a_tuned_plan_is_one_model_by_every_way(name: str, tmp_path: Path) -> None:
    recipe = pruning(write_family(tmp_path, name, torch.float32))
    resolved, family = check_with_family(recipe.model_copy(update={"out_dtype": "float32"}))
    composer = Composer(Bank(family, Precision.of("float32", "float32")))
    model = TunableModel(composer, resolved, TUNED[name], norms=True, outer=True)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in (*model.weights, *model.gains):
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    tuned = model.plan(tmp_path, "gains.safetensors")
    assert tuned.fitted_norms == tuple(range(6))
    texts = TokenSet("texts", tuple(IDS), "0" * 16)
    ((batch,),) = layout([texts], 4096, device=CPU, rungs=(1.0,))
    for ours, theirs in zip(
        model.predictions(batch), predictions_alone(composer.compose(tuned), batch), strict=True
    ):
        torch.testing.assert_close(ours.log_probabilities, theirs.log_probabilities, atol=1e-3, rtol=1e-3)
    written = recipe_of(tuned, DEPTH).model_copy(update={"out_dtype": "bfloat16"})
    assert plan(Recipe.from_mapping(written.to_mapping())) == plan(written)
    assert_three_equal(written, tmp_path / "out")


def test_a_norm_without_a_gain_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, family = check_with_family(pruning(write_family(tmp_path, "llama")))
    composer = Composer(Bank(family, Precision()))
    monkeypatch.setattr(norms, "_norms", lambda text: (("x.weight and y.weight are one tensor",) * DEPTH, ()))
    with pytest.raises(FamilyError, match=r"the norms of layer 0 of llama cannot be set: .* are one tensor"):
        TunableModel(composer, resolved, "layer", norms=True, outer=False)
    assert TunableModel(composer, resolved, "layer", norms=False, outer=False).gains == []


def test_a_family_of_one_has_gains_to_fit_and_nothing_else(tmp_path: Path) -> None:
    base = write_family(tmp_path, "llama")["base"]
    whole = {"sources": [{"model": base, "layer_range": [0, 4]}], "parameters": {"op": "select"}}
    recipe = Recipe.from_mapping({"merge_method": "tailor", "base_model": base, "slices": [whole]})
    resolved, family = check_with_family(recipe)
    composer = Composer(Bank(family, Precision()))
    tuned = TunableModel(composer, resolved, "part", norms=True, outer=True).plan(tmp_path, "gains")
    assert [slot.operation for slot in tuned.slots] == [slot.operation for slot in resolved.slots]
    assert tuned.fitted_norms == (0, 1, 2, 3)
    with pytest.raises(FamilyError, match="there is nothing to fit: the family has no variants"):
        TunableModel(composer, resolved, "part", norms=False, outer=True)


def test_a_layer_without_its_attention_stays_without(tmp_path: Path) -> None:
    recipe = pruning(write_family(tmp_path, "llama")).to_mapping()
    for part in recipe["slices"]:
        if part["parameters"]["op"] == "select":
            part["parameters"]["without"] = "attention"
    resolved, family = check_with_family(Recipe.from_mapping(recipe))
    model = TunableModel(Composer(Bank(family, Precision())), resolved, "layer", norms=False, outer=False)
    assert not model.layers[0].merged()["self_attn.o_proj.weight"].any()
    tuned = model.plan(tmp_path, "gains.safetensors")
    assert [slot.edits for slot in tuned.slots] == [slot.edits for slot in resolved.slots]
    assert tuned.slots[0].edits


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_a_model_that_computes_in_bfloat16_is_tuned_in_it(name: str, tmp_path: Path) -> None:
    """A GPU computes in the dtype of the written model, and the gains, which are float32, follow."""
    recipe = pruning(write_family(tmp_path, name, torch.bfloat16))
    resolved, family = check_with_family(recipe.model_copy(update={"out_dtype": "bfloat16"}))
    composer = Composer(Bank(family, Precision.of("float32", "bfloat16", torch.bfloat16)))
    model = TunableModel(composer, resolved, "part", norms=True, outer=True)
    ((batch,),) = layout([TokenSet("texts", tuple(IDS), "0" * 16)], 4096, device=CPU, rungs=(1.0,))
    with model.differentiated(batch) as predictions:
        for prediction, composed in zip(
            predictions, predictions_alone(composer.compose(resolved), batch), strict=True
        ):
            ours, theirs = prediction.log_probabilities, composed.log_probabilities
            torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)
            ours.square().sum().backward(retain_graph=True)
    for parameter in (*model.weights, *model.gains):
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
