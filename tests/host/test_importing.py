"""An imported recipe makes the model that stock mergekit makes of the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file

from gptailor_merge.errors import RecipeError
from gptailor_merge.host.importing import from_mergekit, load
from gptailor_merge.host.materialize import materialize
from gptailor_merge.planning.check import check
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import MakeFamily

RECIPES = Path(__file__).parents[2] / "recipes"
PUBLISHED = {
    "base": "meta-llama/Llama-2-13b-hf",
    "candidates": [
        "WizardLMTeam/WizardLM-13B-V1.2",
        "vanillaOVO/WizardMath-13B-V1.0",
        "layoric/llama-2-13b-code-alpaca",
    ],
}


def layers(model: str, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    return {
        "model": model,
        "layer_range": [first, last],
        **({"parameters": parameters} if parameters else {}),
    }


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "pruned": {
        "merge_method": "passthrough",
        "slices": [{"sources": [layers("base", 0, 2)]}, {"sources": [layers("math", 4, 5)]}],
    },
    "frankenmerge": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [layers("math", 0, 3)]},
            {
                "sources": [
                    layers("base", 1, 4, scale=[{"filter": "down_proj", "value": 0.5}, {"value": 1.0}])
                ]
            },
            {"sources": [layers("code", 3, 5)]},
        ],
    },
    "linear": {
        "merge_method": "linear",
        "parameters": {"normalize": False},
        "slices": [
            {"sources": [layers("math", 0, 2, weight=[0.2, 0.6]), layers("code", 0, 2, weight=0.4)]},
            {"sources": [layers("base", 3, 5, weight=0.5), layers("code", 3, 5, weight=[0.9, 0.1])]},
        ],
    },
    "normalised": {
        "merge_method": "linear",
        "base_model": "base",
        "parameters": {"weight": 0.7},
        "models": [{"model": "math"}, {"model": "code"}],
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": [{"sources": [layers("base", 0, 5), layers("math", 0, 5)]}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "lm_head", "value": 0.25},
                {"value": [0.6, 0.1]},
            ]
        },
    },
    "other base": {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": [
            {
                "sources": [layers("math", 0, 3), layers("code", 0, 3)],
                "base_model": "code",
                "parameters": {"t": 0.3},
            },
            {"sources": [layers("base", 3, 5), layers("code", 3, 5)], "parameters": {"t": [0.2, 0.8]}},
        ],
    },
    "task arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "parameters": {"lambda": 0.8},
        "slices": [
            {
                "sources": [
                    layers("base", 0, 2),
                    layers("math", 0, 2, weight=0.5),
                    layers("code", 0, 2, weight=0.3),
                ]
            },
            {"sources": [layers("base", 3, 5), layers("code", 3, 5)], "parameters": {"weight": [0.9, 0.1]}},
        ],
    },
    "ties by model": {
        "merge_method": "ties",
        "base_model": "base",
        "name": "a name",
        "tokenizer_source": "base",
        "models": [
            {"model": "base"},
            {
                "model": "math",
                "parameters": {
                    "density": [1, 0.7, 0.1],
                    "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}],
                },
            },
            {"model": "code", "parameters": {"density": 0.33, "weight": [0, 0.3, 0.7, 1]}},
        ],
        "parameters": {"normalize": True, "int8_mask": True},
    },
    "ties of one density": {
        "merge_method": "ties",
        "base_model": "base",
        "tokenizer": {"source": "base"},
        "models": [
            {"model": "math", "parameters": {"density": 0.5, "weight": 0.6}},
            {"model": "code", "parameters": {"weight": 0.3}},
        ],
        "parameters": {"density": [0.4, 0.9], "lambda": 1.1},
    },
    "dare that draws nothing": {
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": [
            {"model": "math", "parameters": {"density": 1.0, "weight": 0.6}},
            {
                "model": "code",
                "parameters": {
                    "density": 1,
                    "weight": [{"filter": "embed_tokens", "value": 0.1}, {"value": 0.3}],
                },
            },
        ],
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "slices": [
            {
                "sources": [
                    layers("math", 0, 5, weight=0.5, gamma=0.02, density=0.9),
                    layers("base", 0, 5),
                    layers("code", 0, 5, weight=0.4, gamma=[0.01, 0.1], density=0.8),
                ]
            }
        ],
    },
    "fewer sources at the beginning": {
        "merge_method": "linear",
        "base_model": "base",
        "slices": [
            {"sources": [layers("math", 0, 2, weight=0.2), layers("base", 0, 2, weight=0.5)]},
            {
                "sources": [
                    layers("base", 2, 5, weight=0.5),
                    layers("code", 2, 5, weight=[{"filter": "norm", "value": 0.9}, {"value": 0.1}]),
                    layers("math", 2, 5, weight=0.3),
                ]
            },
        ],
    },
    "what mergekit ignores": {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": [{"sources": [layers("base", 0, 5, weight=1), layers("math", 0, 5)]}],
        "parameters": {"t": 0.4, "int8_mask": True, "normalize": False},
    },
    "repeated layers": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [layers("base", 0, 4)]},
            {"sources": [layers("math", 2, 4)]},
            {"sources": [layers("base", 2, 5)]},
        ],
    },
    "pinned": {
        "merge_method": "passthrough",
        "base_model": "base",
        "slices": [
            {"sources": [layers("code", 0, 0)]},
            {"sources": [layers("math", 1, 5)]},
            {"sources": [layers("base", 5, 5)]},
        ],
    },
}


def named(value: Any, family: dict[str, str]) -> Any:
    """A configuration with the family's directories."""
    if isinstance(value, dict):
        return {k: family[v] if k in ("model", "base_model") else named(v, family) for k, v in value.items()}
    return [named(item, family) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_model(name: str, dtype: str, family: dict[str, str], tmp_path: Path) -> None:
    document = named({**CONFIGURATIONS[name], "dtype": dtype, "out_dtype": "bfloat16"}, family)
    imported = from_mergekit(document)
    assert Recipe.from_mapping(imported.recipe.to_mapping()) == imported.recipe
    materialize(imported.recipe, tmp_path / "ours")
    # Without a base, mergekit takes config and tokenizer from any model; the weights do not depend on it.
    run_merge(MergeConfiguration.model_validate(document), str(tmp_path / "stock"), MergeOptions(quiet=True))
    ours, stock = (load_file(tmp_path / out / "model.safetensors") for out in ("ours", "stock"))
    assert ours.keys() == stock.keys()
    for tensor in ours:
        assert ours[tensor].dtype == stock[tensor].dtype
        assert torch.equal(ours[tensor], stock[tensor]), tensor


def test_what_mergekit_ignores_is_told(family: dict[str, str]) -> None:
    notes = from_mergekit(named(CONFIGURATIONS["what mergekit ignores"], family)).notes
    assert [note.split(" is left out")[0] for note in notes] == ["int8_mask", "normalize", "weight"]
    notes = from_mergekit(named(CONFIGURATIONS["ties by model"], family)).notes
    assert notes[0].startswith("name is left out")
    assert notes[1].startswith("the tokenizer is that of base; rows of the embeddings")
    (note,) = from_mergekit(named(CONFIGURATIONS["dare that draws nothing"], family)).notes
    assert note.startswith("dare_ties draws random numbers")


def test_an_option_says_where_embeddings_and_head_come_from(family: dict[str, str]) -> None:
    scaled = {
        "merge_method": "passthrough",
        "base_model": family["base"],
        "slices": [{"sources": [layers(family["math"], 0, 5, scale=0.5)]}],
    }
    with pytest.raises(RecipeError, match="say where they come from, unscaled, with --embeddings MODEL"):
        from_mergekit(scaled)
    with pytest.raises(RecipeError, match="with --head MODEL"):
        from_mergekit(scaled, embeddings="base")
    imported = from_mergekit(scaled, embeddings="base", head=family["math"])
    assert imported.recipe.parameters.embeddings.weights == (("base", 1.0),)
    assert imported.recipe.parameters.head.weights == ((family["math"], 1.0),)
    assert f"head comes from {family['math']}, as --head says" in imported.notes
    with pytest.raises(RecipeError, match=r"parameters\.head: unknown member, found 'nobody'"):
        from_mergekit(scaled, embeddings="base", head="nobody")


def test_a_tied_head_has_the_final_norm_with_it(make_family: MakeFamily) -> None:
    family = make_family(tied=True)
    document = named(CONFIGURATIONS["pruned"], family)
    with pytest.raises(RecipeError, match=r"is its embedding matrix .* --embeddings MODEL --head MODEL"):
        from_mergekit(document)
    recipe = from_mergekit(document, embeddings="base", head="base").recipe
    assert recipe.parameters.embeddings == recipe.parameters.head
    assert check(recipe).head.models == (family["base"],)


def test_what_was_removed_is_written_down(family: dict[str, str]) -> None:
    recipe = from_mergekit(named(CONFIGURATIONS["pruned"], family)).recipe
    removed = [s for s in recipe.slices if s.parameter("op") == "remove"]
    assert [s.sources[0].layer_range for s in removed] == [(2, 4)]
    assert recipe.parameters.head.weights == ((family["math"], 1.0),)


def test_a_missing_base_is_told(family: dict[str, str]) -> None:
    (note,) = from_mergekit(named(CONFIGURATIONS["pruned"], family)).notes
    assert note == f"base_model is missing; {family['base']} gives config and tokenizer"


STACK = {"slices": [{"sources": [layers("a", 0, 2)]}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"merge_method": "tailor", **STACK}, "merge_method: is tailor already"),
        ({"merge_method": "pasthrough", **STACK}, "did you mean 'passthrough'?"),
        (
            {"merge_method": "passthrough", "tokenizer_source": "union", **STACK},
            "tokenizer_source: 'union' makes a vocabulary of its own",
        ),
        (
            {"merge_method": "passthrough", "modules": {}},
            "modules: cannot be imported; did you mean 'models'?",
        ),
        ({"merge_method": "passthrough"}, "expected either slices or models"),
        (
            {"merge_method": "passthrough", "models": [{"model": "org/a"}]},
            "models[0].model: the number of layers",
        ),
        ({"merge_method": "slerp", **STACK}, "base_model: is missing; slerp calculates with a base"),
        (
            {"merge_method": "passthrough", "slices": [{**STACK["slices"][0], "merge_method": "slerp"}]},
            "slices[0].merge_method: mergekit ignores it",
        ),
        (
            {"merge_method": "passthrough", "slices": [{"sources": [layers("a", 0, 2, scale=0.5)]}]},
            "mergekit applies the scale of the first and the last slice to embeddings and head",
        ),
        (
            {"merge_method": "passthrough", "slices": [{"sources": [layers("a", 0, 2, sacle=1)]}]},
            "did you mean 'scale'?",
        ),
        (
            {
                "merge_method": "linear",
                "slices": [{"sources": [layers("a", 0, 2), layers("b", 0, 2)]}],
                "parameters": {"weight": [{"filter": "3", "value": 1}, {"value": 0.5}]},
            },
            "the filter '3' means whole layers",
        ),
        (
            {"merge_method": "slerp", "base_model": "a", "tokenizer": {"pad_to_multiple_of": 8}, **STACK},
            "tokenizer.pad_to_m",
        ),
        (
            {"merge_method": "slerp", "base_model": "a", "tokenizer": {}, **STACK},
            "tokenizer: 'union' makes a vocabulary",
        ),
        (
            {"merge_method": "linear", "base_model": "a", "models": [{"model": "a", "parameters": 1}]},
            "the number of layers of 'a' is not known",
        ),
        (
            {"merge_method": "slerp", "base_model": "a", "parameters": {"tt": 1}, **STACK},
            "parameters.tt: is no parameter, and mergekit ignores it; did you mean 't'?",
        ),
    ],
)
def test_what_cannot_be_imported_is_named(
    document: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def published_json(number: int) -> dict[str, Any]:
    """The file that the paper's code would have written for a recipe of ours."""
    recipe = plan(Recipe.load(RECIPES / f"llama-2-13b-gptailor-{number}.yml"))
    kept = {slot.layers[0][1]: slot for slot in recipe.slots}
    document: dict[str, Any] = {}
    for place, layer in enumerate(sorted(set(range(40)) - set(kept))):
        document[f"remove_idx_{place}"] = layer
    for layer, slot in kept.items():
        models = {model for model, _ in slot.layers}
        for number_of, candidate in enumerate(PUBLISHED["candidates"]):
            document[f"layer_{layer}_candidate_{number_of}"] = int(candidate in models)
        weights = [dict(settings)["weight"] for settings in slot.operation.inputs if settings]
        document[f"layer_{layer}_merge_scale_factor"] = weights[0] if weights else 0.5
        document[f"layer_{layer}_output_scale"] = 1.0
    return document


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_papers_configurations(number: int, tmp_path: Path) -> None:
    file = tmp_path / "published.json"
    file.write_text(json.dumps(published_json(number)))
    imported = load(file, **PUBLISHED)  # type: ignore[arg-type]
    ours = Recipe.load(RECIPES / f"llama-2-13b-gptailor-{number}.yml")
    assert plan(imported.recipe).slots == plan(ours).slots
    assert plan(imported.recipe).embeddings == plan(ours).embeddings
    assert plan(imported.recipe).head == plan(ours).head
    assert any("output_scale is left out" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"base": None}, "give --base MODEL, and --candidates MODEL"),
        ({"layer_0_candidate_7": 1}, {}, "layer_0_candidate_7: only 3 candidates are given"),
        ({"layer_0_colour": 1}, {}, "layer_0_colour: is no key of the paper's configurations"),
        ({"layer_40_merge_scale_factor": "x"}, {}, "expected a number, found 'x'"),
        ({"remove_idx_99": 25}, {}, "remove_idx_99: expected a layer of its own, found 25"),
        ({"layer_41_candidate_0": 1}, {}, "layer 40 is neither removed nor given candidates"),
    ],
)
def test_mistakes_in_the_papers_configurations(
    change: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "published.json"
    file.write_text(json.dumps({**published_json(1), **change}))
    with pytest.raises(RecipeError) as caught:
        load(file, **{**PUBLISHED, **options})  # type: ignore[arg-type]
    assert message in str(caught.value)
