"""Gains of norms from a file: the same model by every way, which norms have some, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from gptailor_merge.composing import norms
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.editing import load_gains, save_gains
from gptailor_merge.composing.norms import norms_of, outer_norms, with_gains
from gptailor_merge.composing.prefixes import path_of
from gptailor_merge.digests import digest_of_bytes
from gptailor_merge.errors import FamilyError, RecipeError
from gptailor_merge.models.architecture import Architecture, on_meta
from gptailor_merge.planning.check import check, check_with_family
from gptailor_merge.planning.resolve import plan
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.recipe.plan import NORMS, Edit
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.cuts import with_edit
from gptailor_merge.testing.three_models import assert_three_equal
from tests.composing.test_editing import repaired
from tests.host.test_exporting import write_plain
from tests.zoo import config_of, write_family

DEPTH = 8


def document(family: dict[str, str], **top: Any) -> dict[str, Any]:
    """Two selected layers, two merged ones and one that is removed."""
    base, math, code = family["base"], family["math"], family["code"]
    return {
        "merge_method": "tailor",
        "base_model": base,
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "slices": [
            {"sources": [{"model": math, "layer_range": [0, 2]}], "parameters": {"op": "select"}},
            {"sources": [{"model": base, "layer_range": [2, 3]}], "parameters": {"op": "remove"}},
            {
                "sources": [
                    {"model": math, "layer_range": [3, 5], "parameters": {"weight": 0.6}},
                    {"model": code, "layer_range": [3, 5], "parameters": {"weight": [0.2, 0.4]}},
                ],
                "parameters": {"op": "merge", "method": "task_arithmetic"},
            },
            {"sources": [{"model": base, "layer_range": [5, 8]}], "parameters": {"op": "select"}},
        ],
        **top,
    }


def gains_of(config: dict[str, Any], layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Random gains of all norms of some layers, and of those outside the layers."""
    torch.manual_seed(3)
    architecture = Architecture.of(config)
    shapes = {
        f"layers.{i}.{name}": architecture.layers[i][name] for i in layers for name in norms_of(config, i)
    }
    outer = {**architecture.before, **architecture.after}
    shapes |= {name: outer[name] for name in outer_norms(config)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "olmo2", "gpt_neox"])
def test_gains_take_the_place_of_those_that_are_merged_or_selected(name: str, tmp_path: Path) -> None:
    family = write_family(tmp_path, name)
    config = config_of(name).to_dict()
    gains = gains_of(config, (1, 3, 4, 6))
    file, digest = save_gains(gains, tmp_path, "gains.safetensors")
    ends = {"method": "linear", "weights": {"base": 0.5, family["code"]: 0.75}}
    plain = plan(Recipe.from_mapping(document(family, parameters={"embeddings": ends, "head": ends})))
    fitted = with_gains(plain, Edit(NORMS, digest, str(file)))
    assert fitted.fitted_norms == (1, 2, 3, 5)
    recipe = recipe_of(fitted, DEPTH)
    again = plan(Recipe.from_mapping(recipe.to_mapping()))
    assert (again, again.digest) == (fitted, fitted.digest)
    assert fitted.digest != plain.digest
    composed = assert_three_equal(recipe, tmp_path / "out")
    for key, gain in gains.items():
        if key.startswith("layers."):
            _, layer, inner = key.split(".", 2)
            written = composed.base_model.layers[fitted.kept.index(int(layer))].get_parameter(inner)
        else:
            written = composed.get_parameter(key)
        assert torch.equal(written, gain.bfloat16()), key


@pytest.mark.parametrize(
    "dtypes", [{"dtype": "bfloat16", "out_dtype": None}, {"dtype": None, "out_dtype": "float16"}], ids=str
)
def test_gains_pass_through_the_dtypes_that_weights_do(dtypes: dict[str, Any], tmp_path: Path) -> None:
    """A layer that is taken twice has its gains twice, and a repair may stand beside them."""
    family = write_family(tmp_path, "llama")
    gains = gains_of(config_of("llama").to_dict(), (3,))
    file, digest = save_gains(gains, tmp_path, "gains.safetensors")
    part = repaired(family["base"], 3, tmp_path)
    plain = plan(Recipe.from_mapping({**document(family, **dtypes), "slices": [part, part]}))
    fitted = with_gains(plain, Edit(NORMS, digest, str(file)))
    recipe = recipe_of(fitted, DEPTH)
    assert plan(recipe) == fitted
    composed = assert_three_equal(recipe, tmp_path / "out")
    written = composed.base_model.layers[1].input_layernorm.weight
    stored = gains["layers.3.input_layernorm.weight"]
    assert torch.equal(written, stored.bfloat16().to(written.dtype))


def test_edits_stay_in_the_order_that_recipes_have(tmp_path: Path) -> None:
    names = {"base": "org/base", "math": "org/math", "code": "org/code"}
    file, digest = save_gains({"layers.0.n.weight": torch.ones(2)}, tmp_path, "g.safetensors")
    edit = Edit(NORMS, digest, str(file))
    fitted = with_gains(plan(Recipe.from_mapping(document(names))), edit)
    assert fitted.gains is None
    both = with_edit(fitted, 0, Edit("mlp", "0" * 16, "map"))
    assert [e.part for e in both.slots[0].edits] == ["mlp", "norms"]
    assert (both.repaired, both.fitted_norms) == ((0,), (0,))
    assert plan(recipe_of(both, DEPTH)) == both
    # Fitting again replaces the gains, and leaves the map.
    other, other_digest = save_gains({"model.norm.weight": torch.ones(2)}, tmp_path, "h.safetensors")
    again = with_gains(both, Edit(NORMS, other_digest, str(other)))
    assert [e.part for e in again.slots[0].edits] == ["mlp"]
    assert again.gains == Edit(NORMS, other_digest)
    assert plan(recipe_of(again, DEPTH)) == again


def test_models_of_one_composer_keep_their_own_gains(llama: dict[str, str], tmp_path: Path) -> None:
    """A norm outside the layers may stand before them, so that plans with other gains share no path."""
    plain, family = check_with_family(Recipe.from_mapping(document(llama)))
    composer = Composer(Bank(family, Precision.of("float32", None)))
    plans = [plain]
    for value in (2.0, 3.0):
        gains = {name: torch.full((16,), value) for name in (f"layers.0.{NORM}", "model.norm.weight")}
        file, digest = save_gains(gains, tmp_path, f"{value}.safetensors")
        plans.append(with_gains(plain, Edit(NORMS, digest, str(file))))
    written = []
    for made in (*plans, *plans):
        model = composer.compose(made)
        body = model.base_model
        written.append([float(norm.weight[0]) for norm in (body.layers[0].input_layernorm, body.norm)])
    assert written[1:3] == written[4:] == [[2.0, 2.0], [3.0, 3.0]]
    assert written[0] == written[3] != [1.0, 1.0]
    outer = [replace(plain, gains=made.gains) for made in plans]
    assert len({path_of(made)[0] for made in outer}) == 3


def test_norms_are_found_by_what_they_are() -> None:
    attention = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
    behind = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    assert norms_of(config_of("olmo2").to_dict(), 0) == (*attention, *behind)
    assert norms_of(config_of("cohere2").to_dict(), 0) == ("input_layernorm.weight",)
    assert outer_norms(config_of("gpt_neox").to_dict()) == ("gpt_neox.final_layer_norm.weight",)
    assert outer_norms(config_of("lfm2").to_dict()) == ("model.embedding_norm.weight",)


def test_norms_without_gains_are_refused() -> None:
    config = {**config_of("llama").to_dict(), "model_type": "olmo"}
    with pytest.raises(
        FamilyError, match="the norms of layer 1 of olmo cannot be set: found OlmoLayerNorm, and"
    ):
        norms_of(config, 1)
    with pytest.raises(FamilyError, match="the norms outside the layers of olmo cannot be set"):
        outer_norms(config)


def test_a_gain_that_layers_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(text: str) -> Any:
        model = on_meta(text)
        layers = model.base_model.layers
        layers[2].input_layernorm = layers[1].input_layernorm
        return model

    monkeypatch.setattr(norms, "on_meta", shared)
    config = {**config_of("llama").to_dict(), "rms_norm_eps": 0.125}
    twins = "model.layers.{}.input_layernorm.weight and model.layers.{}.input_layernorm.weight are one tensor"
    for layer, other in ((1, 2), (2, 1)):
        with pytest.raises(FamilyError, match=twins.format(layer, other)):
            norms_of(config, layer)
    assert "input_layernorm.weight" in norms_of(config, 3)


ONES = torch.ones(16)
NORM = "input_layernorm.weight"


@pytest.mark.parametrize(
    ("gains", "message"),
    [
        (
            {"model.norm.weight": ONES},
            "has no gains of the norms of layer 3; expected some of layers.3.input",
        ),
        ({f"layers.4.{NORM}": ONES}, "has no gains of the norms of layer 3; expected some of layers.3.input"),
        ({f"layers.3.{NORM}": torch.ones(3)}, f"layers.3.{NORM} in {{file}} is [3], and the norm takes [16]"),
        (
            {"layers.3.mlp.weight": ONES},
            "has layers.3.mlp.weight, and the norms of layer 3 have no such gain",
        ),
        ({f"layers.03.{NORM}": ONES}, f"has layers.03.{NORM}, and the norms of layer 3 have no such gain"),
        (
            {f"layers.3.{NORM}": ONES, f"layers.8.{NORM}": ONES},
            f"has layers.8.{NORM}, and the model has 8 layers",
        ),
        (
            {f"layers.3.{NORM}": ONES, f"layers.5.{NORM}": torch.ones(2)},
            f"layers.5.{NORM} in {{file}} is [2], and the norm takes [16]",
        ),
        (
            {f"layers.3.{NORM}": ONES, "norm.weight": ONES},
            "has norm.weight, and the norms outside the layers have no such gain; expected some of model.norm",
        ),
        ({f"layers.3.{NORM}": ONES / 0}, "in {file} has values that are not finite"),
        ({f"layers.3.{NORM}": torch.ones(2, 8)}, "is float32 [2, 8]; expected float32 and one dimension"),
        ({f"layers.3.{NORM}": ONES.half()}, "is float16 [16]; expected float32 and one dimension"),
        ({}, "holds no gains of norms"),
    ],
)
def test_gains_that_do_not_fit_are_refused(
    gains: dict[str, torch.Tensor], message: str, llama: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "g.safetensors"
    file.write_bytes(save({name: gain.clone() for name, gain in gains.items()}))
    made = document(llama)
    digest = digest_of_bytes(file.read_bytes())
    made["slices"][2]["parameters"] |= {"gains": str(file), "gains_digest": digest}
    with pytest.raises(RecipeError) as caught:
        check_with_family(Recipe.from_mapping(made))
    (problem,) = caught.value.problems
    assert message.format(file=file) in problem.message
    assert problem.where == "slices[2].parameters.gains"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gains": "a"}, "parameters: gains_digest is missing; gains are a file of them and its digest"),
        ({"gains_digest": "0"}, "parameters: gains is missing; gains are"),
        ({"gains": 1, "gains_digest": "0"}, "parameters.gains: expected a text, in quotes, found 1"),
        ({"gains": "a", "gains_digest": 12}, "parameters.gains_digest: expected a text, in quotes, found 12"),
        ({"gains": "a", "gains_digest": "0"}, "parameters.gains: no such file, found 'a'"),
        ({"gains": "\0", "gains_digest": "0"}, "parameters.gains: no such file, found '\\x00'"),
        ({"gains": __file__, "gains_digest": "0"}, "and the recipe was made with 0"),
        (
            {"gains": __file__, "gains_digest": digest_of_bytes(Path(__file__).read_bytes())},
            "holds no gains of norms; expected a safetensors file",
        ),
        ({"gain": "a"}, "; did you mean 'gains'?"),
    ],
)
@pytest.mark.parametrize("is_outer", [False, True], ids=["slice", "outside"])
def test_mistakes(parameters: dict[str, Any], message: str, is_outer: bool) -> None:
    part = {"sources": [{"model": "org/a", "layer_range": [0, 1]}], "parameters": {"op": "select"}}
    made: dict[str, Any] = {"merge_method": "tailor", "base_model": "org/a", "slices": [part]}
    if is_outer:
        made["parameters"] = parameters
    else:
        part["parameters"] |= parameters  # type: ignore[operator]
    with pytest.raises(RecipeError) as caught:
        check(Recipe.from_mapping(made))
    if "did you mean" in message and not is_outer:
        message = "unknown parameter of select"
    assert message in str(caught.value)


def test_gains_outside_the_layers_are_checked_too(llama: dict[str, str], tmp_path: Path) -> None:
    file, digest = save_gains({f"layers.3.{NORM}": ONES}, tmp_path, "g.safetensors")
    made = document(llama, parameters={"gains": str(file), "gains_digest": digest})
    with pytest.raises(RecipeError, match="has no gains of the norms outside the layers") as caught:
        check(Recipe.from_mapping(made))
    assert caught.value.problems[0].where == "parameters.gains"


def test_gains_have_no_plain_form(llama: dict[str, str], tmp_path: Path) -> None:
    for place, name in enumerate((f"layers.3.{NORM}", "model.norm.weight")):
        file, digest = save_gains({name: ONES}, tmp_path, f"{place}.safetensors")
        fitted = with_gains(plan(Recipe.from_mapping(document(llama))), Edit(NORMS, digest, str(file)))
        with pytest.raises(RecipeError, match="the gains of norms are fitted numbers, and no method"):
            write_plain(recipe_of(fitted, DEPTH), tmp_path / f"plain-{place}")


def test_a_file_that_many_slices_name_is_refused_once(llama: dict[str, str], tmp_path: Path) -> None:
    made = document(llama)
    file, digest = save_gains({f"layers.{i}.{NORM}": torch.ones(3) for i in range(8)}, tmp_path, "g")
    for gains in ({"gains": "absent", "gains_digest": "0"}, {"gains": str(file), "gains_digest": digest}):
        for part in (*made["slices"][:1], *made["slices"][2:], made):
            part["parameters"] = {**part.get("parameters", {}), **gains}
        with pytest.raises(RecipeError) as caught:
            check(Recipe.from_mapping(made))
        assert len(caught.value.problems) == 1


def test_gains_that_are_parts_of_one_tensor_are_written(tmp_path: Path) -> None:
    whole = torch.arange(6.0, requires_grad=True)
    file, digest = save_gains({"b": whole[::2], "a": whole[:3]}, tmp_path, "g.safetensors")
    assert {name: gain.tolist() for name, gain in load_gains(str(file), digest).items()} == {
        "a": [0, 1, 2],
        "b": [0, 2, 4],
    }
