"""A config's operations become a space, and recipes to start from become recipes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.preparation import Preparation, prepare
from gptailor_merge.space.outer import METHODS
from gptailor_merge.testing.tiny_models import write_tokenizer
from tests.conftest import MakeFamily
from tests.zoo import write_family

OWN = {"embeddings": "math", "head": {"method": "linear", "weights": {"math": 0.4, "code": 0.6}}}


def prepared(family: dict[str, str], start: dict[str, Any] | None = None, **operations: Any) -> Preparation:
    started = () if start is None else ({"file": "start.yml", "recipe": start},)
    return prepare(
        SearchConfig.model_validate(
            {
                "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
                "target": {"remove": 1},
                "objectives": [{"kind": "kl", "data": {"a": "a.jsonl"}}],
                "operations": operations,
                "search": {"start": started},
            }
        )
    )


def start_of(family: dict[str, str], embeddings: Any, head: Any) -> dict[str, Any]:
    """The base without layer 1, between these."""

    def named(component: Any) -> Any:
        if isinstance(component, str):
            return family[component]
        weights = {family[name]: weight for name, weight in component["weights"].items()}
        return {**component, "weights": weights}

    slices = [
        {"sources": [{"model": family["base"], "layer_range": r}], "parameters": {"op": op}}
        for r, op in (([0, 1], "select"), ([1, 2], "remove"), ([2, 5], "select"))
    ]
    return {
        "merge_method": "tailor",
        "base_model": family["base"],
        "slices": slices,
        "parameters": {"embeddings": named(embeddings), "head": named(head)},
    }


@pytest.mark.parametrize(
    ("outer", "kept"),
    [("base", set()), ("select", {"embeddings"}), ("merge", {"embeddings", "head"})],
)
def test_a_start_keeps_the_embeddings_and_head_that_the_space_has(
    outer: str, kept: set[str], family: dict[str, str]
) -> None:
    start = start_of(family, OWN["embeddings"], OWN["head"])
    (recipe,) = prepared(family, start, outer=outer).start
    given = Recipe.from_mapping(start).parameters
    for name in ("embeddings", "head"):
        same = getattr(recipe.parameters, name) == getattr(given, name)
        assert same == (name in kept), name
    assert recipe.slices == Recipe.from_mapping(start).slices


def test_embeddings_of_another_size_are_not_offered(family: dict[str, str], make_family: MakeFamily) -> None:
    larger = make_family(vocabulary=72)
    mixed = {**family, "code": larger["code"]}
    space = prepared(mixed, outer="merge").space
    assert space.outer is not None
    assert space.outer.models == (family["base"], family["math"])
    assert space.outer.methods == METHODS
    with pytest.raises(
        ConfigError, match=r"operations\.outer: no variant can give embeddings and head, .*vocabularies"
    ):
        prepared({**mixed, "math": larger["math"]}, outer="select")


def test_tied_embeddings_are_one_component(make_family: MakeFamily) -> None:
    space = prepared(make_family(tied=True), outer="select").space
    assert space.shapes()["outer_kind"] == (1,)


def test_parts_are_named_by_the_architecture(family: dict[str, str], tmp_path: Path) -> None:
    assert prepared(family, parts=True).space.parts == ("mlp.", "post_attention_layernorm.")
    gemma = write_family(tmp_path, "gemma2")
    write_tokenizer(Path(gemma["base"]))
    filters = ("mlp.", "post_feedforward_layernorm.", "pre_feedforward_layernorm.")
    assert prepared(gemma, parts=True).space.parts == filters


def test_all_is_off_by_default(family: dict[str, str]) -> None:
    space = prepared(family).space
    assert (space.outer, space.neighbours, space.parts) == (None, 0, ())
