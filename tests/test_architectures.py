"""The architectures that people merge: stock mergekit and composing make the same sound model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor_merge.config import Operations, SearchConfig
from gptailor_merge.errors import ConfigError, RecipeError
from gptailor_merge.host.lowering import lower
from gptailor_merge.host.registration import register
from gptailor_merge.planning.check import check
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.preparation import prepare
from gptailor_merge.search.baselines.layer_sets import removal
from gptailor_merge.target_config import Target
from gptailor_merge.testing.three_models import IDS, assert_three_equal
from gptailor_merge.testing.tiny_models import write_tokenizer
from tests.zoo import ZOO, write_family


def by_stock_mergekit(recipe: Recipe, out: Path) -> None:
    """Does what `mergekit-yaml` does with the recipe's file, through the pydantic plug-in."""
    configuration = MergeConfiguration.model_validate(recipe.to_mapping())
    run_merge(configuration, str(out), MergeOptions(write_model_card=False, quiet=True))


def stack(family: dict[str, str], kept: list[int], merged: tuple[int, int] | None = None) -> Recipe:
    """Layers of the base, one of them merged with a layer of another member."""
    slices = []
    for layer in kept:
        sources: list[dict[str, Any]] = [{"model": family["base"], "layer_range": [layer, layer + 1]}]
        parameters: dict[str, Any] = {"op": "select"}
        if merged is not None and layer == merged[0]:
            sources.append({"model": family["math"], "layer_range": [merged[1], merged[1] + 1]})
            parameters = {"op": "merge", "method": "linear", "weight": 0.5}
        slices.append({"sources": sources, "parameters": parameters})
    top = {"merge_method": "tailor", "base_model": family["base"], "dtype": "float32", "out_dtype": "float32"}
    return Recipe.from_mapping({**top, "slices": slices})


def pruning(family: dict[str, str]) -> Recipe:
    """Remove, select and merge; the removals shift every pattern of layers."""
    base, math, code = family["base"], family["math"], family["code"]

    def part(model: str, first: int, last: int, op: str) -> dict[str, Any]:
        return {"sources": [{"model": model, "layer_range": [first, last]}], "parameters": {"op": op}}

    merged = [
        {"model": model, "layer_range": [2, 4], "parameters": {"weight": 0.6}} for model in (math, code)
    ]
    slices = [
        part(math, 0, 1, "select"),
        part(base, 1, 2, "remove"),
        {"sources": merged, "parameters": {"op": "merge", "method": "task_arithmetic"}},
        part(base, 4, 5, "remove"),
        part(code, 5, 6, "select"),
        part(base, 6, 8, "select"),
    ]
    top = {"merge_method": "tailor", "base_model": base, "dtype": "float32", "out_dtype": "bfloat16"}
    return Recipe.from_mapping({**top, "slices": slices})


def assert_generates_alike(model: PreTrainedModel) -> None:
    """Greedy generation with the KV cache equals generation without, past the sliding window."""
    made = [
        model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=cached)
        for cached in (True, False)
    ]
    assert made[0].shape == (2, IDS.shape[1] + 6)
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ZOO)
def test_stock_mergekit_and_composing_agree(name: str, tmp_path: Path) -> None:
    # float32: without and with the cache, sums are taken in another order
    recipe = pruning(write_family(tmp_path, name)).model_copy(update={"out_dtype": "float32"})
    composed = assert_three_equal(recipe, tmp_path / "out", by_stock_mergekit)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert composed.config.num_hidden_layers == loaded.config.num_hidden_layers == 6
    for model in (composed, loaded.eval()):
        assert_generates_alike(model)


@pytest.fixture(scope="module")
def ernie(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_family(tmp_path_factory.mktemp("ernie"), "ernie4_5_moe", torch.float32)


def test_a_fixed_pattern_can_be_pruned_by_what_keeps_it(ernie: dict[str, str], tmp_path: Path) -> None:
    composed = assert_three_equal(stack(ernie, [0, 1, 4, 5, 6, 7]), tmp_path / "out", by_stock_mergekit)
    assert_generates_alike(composed)


UNSOUND = [
    (
        "ernie",
        [0, 1, 3, 4, 5, 6],
        None,
        "layer 3 would be in slot 2, where ernie4_5_moe computes another kind",
    ),
    ("ernie", [0, 1, 2, 3], (2, 5), "layers of unlike kinds: of layer 5 of "),
    ("qwen3", [0, 1, 2, 3], (0, 1), "layer_types is full_attention, not sliding_attention as of layer 0"),
    ("lfm2", [0, 1, 2, 3], (3, 2), "layers of unlike kinds: of layer 2 of "),
]


@pytest.mark.parametrize(("name", "kept", "merged", "message"), UNSOUND)
def test_layers_in_unlike_places_are_refused(
    name: str,
    kept: list[int],
    merged: tuple[int, int] | None,
    message: str,
    ernie: dict[str, str],
    tmp_path: Path,
) -> None:
    family = ernie if name == "ernie" else write_family(tmp_path / "family", name, torch.float32)
    recipe = stack(family, kept, merged)
    with pytest.raises(RecipeError, match=message):
        check(recipe)
    # Of models that are not on this machine the linter knows nothing; then the merge itself refuses.
    register()
    configuration = MergeConfiguration.model_validate(lower(plan(recipe)))
    with pytest.raises(RecipeError, match=message):
        run_merge(configuration, str(tmp_path / "out"), MergeOptions(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_search_offers_only_what_keeps_the_pattern(ernie: dict[str, str]) -> None:
    write_tokenizer(Path(ernie["base"]))
    config = SearchConfig.model_validate(
        {
            "family": {"base": ernie["base"], "variants": {"math": ernie["math"]}},
            "target": {"layers": 6},
            "repair": {"texts": "scored"},
            "tune": {"steps": 0},
            "writes": {"tokens": 0},
            "objectives": [{"kind": "perplexity", "data": {"x": "x.txt"}}],
            "operations": {"merge": ["linear"], "protect": {"first": 1, "last": 0}},
        }
    )
    space = prepare(config).space
    assert space.patterns
    rng = np.random.RandomState(0)
    seen = set()
    for _ in range(6):
        plan = space.decode(space.mutate(space.random(rng), rng))
        seen.add(check(space.recipe(plan)).kept)
    assert len(seen) > 1
    assert removal(space, [-float(layer) for layer in range(8)], 6) in ({1, 2}, {2, 3})
    with pytest.raises(ConfigError, match="no 5 layers keep the pattern"):
        prepare(
            config.model_copy(
                update={"target": Target(layers=5), "operations": Operations(removable=(1, 3, 5))}
            )
        )
