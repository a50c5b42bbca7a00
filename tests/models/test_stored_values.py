from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptailor_merge.api.models import check as examine
from gptailor_merge.errors import FamilyError, MergeFailedError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.models.family import Family
from gptailor_merge.models.stored_values import check_values, is_finite, stored_heads
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import MakeFamily, recipe_of

Weights = dict[str, torch.Tensor]
NORM = "model.layers.3.input_layernorm.weight"


def edited(source: str, directory: Path, change: Callable[[Weights], object]) -> str:
    """A copy of a model whose tensors are changed."""
    shutil.copytree(source, directory)
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_one_value_among_many(dtype: torch.dtype, value: float) -> None:
    tensor = torch.ones(3, 7)
    assert is_finite(tensor.to(dtype))
    tensor[1, 2] = value
    assert not is_finite(tensor.to(dtype))


def test_a_member_with_nan_is_named(family: dict[str, str], tmp_path: Path) -> None:
    broken = edited(family["math"], tmp_path / "broken", lambda w: w[NORM][2:3].fill_(float("nan")))
    with pytest.raises(
        FamilyError, match=rf"^math: {NORM} in broken/model.safetensors holds NaN or infinite"
    ):
        check_values(Family.load(family["base"], {"math": broken}))
    recipe = Recipe.from_mapping(recipe_of({**family, "math": broken}, dtype="float32", out_dtype="bfloat16"))
    with pytest.raises(MergeFailedError, match=rf"not finite; .*broken: {NORM} in broken/model.safetensors"):
        materialize(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # A tensor that is none of the model's does not count.
    besides = edited(family["math"], tmp_path / "besides", lambda w: w.update(v=torch.tensor([float("nan")])))
    assert check_values(Family.load(besides, {})) == ()


def test_a_tied_config_over_another_head(make_family: MakeFamily, tmp_path: Path) -> None:
    tied = make_family(tied=True)
    embeddings = "model.embed_tokens.weight"
    other = edited(tied["base"], tmp_path / "a", lambda w: w.update({"lm_head.weight": w[embeddings] + 1}))
    same = edited(tied["base"], tmp_path / "b", lambda w: w.update({"lm_head.weight": w[embeddings].clone()}))
    (sentence,) = stored_heads(Family.load(other, {"math": tied["math"]}))
    assert sentence.startswith(
        "base has tie_word_embeddings in its config.json, and its files hold another head,"
    )
    assert stored_heads(Family.load(same, {"math": tied["math"]})) == ()
    findings = {d: {f.name: f for f in examine(d).findings}["config"] for d in (other, same)}
    assert [findings[d].verdict for d in (other, same)] == ["warn", "ok"]
    assert "lm_head.weight is stored and differs from the embeddings" in findings[other].sentence
    told: list[str] = []
    recipe = Recipe.from_mapping(recipe_of({**tied, "base": other}, out_dtype="bfloat16"))
    materialize(recipe, tmp_path / "out", on_warning=told.append)
    assert told == [sentence]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written[embeddings], load_file(f"{other}/model.safetensors")[embeddings])
    assert "lm_head.weight" not in written
