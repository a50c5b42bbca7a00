"""Recipes that the linter accepts merge and load; those that it refuses write nothing."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gptailor_merge.errors import InputError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.methods.specs import ParameterScope, method_names, method_spec
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.planning.check import check
from gptailor_merge.recipe.plan import SELECT
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import MakeFamily
from tests.zoo import DEPTH, write_family

METHODS = [name for name in method_names() if name != SELECT]
Document = dict[str, Any]
ODD = [
    None,
    True,
    -1,
    0,
    1,
    3.5,
    1e-30,
    1e30,
    float("nan"),
    "",
    "base",
    "0.5",
    [],
    [0.1, 0.9],
    {},
    {"value": 0.5},
]


def sound(family: dict[str, str], rng: random.Random) -> Document:
    """A random walk up the layers, by any method with its required parameters."""
    slices: list[Document] = []
    layer = 0
    while layer < DEPTH:
        last = min(DEPTH, layer + rng.randint(1, 3))
        op = rng.choice(["remove", "select", "merge", "merge"])
        spec = method_spec(rng.choice(METHODS))
        assert spec is not None
        parameters: Document = {"op": op}
        sources: list[Document] = [{"model": model} for model in rng.sample(list(family.values()), 3)]
        if op == "merge":
            parameters["method"] = spec.name
            if spec.most == 2:
                sources = [{"model": family["base"]}, {"model": family["math"]}]
            for parameter in (p for p in spec.parameters if p.required):
                shared = parameter.scope is ParameterScope.SHARED
                for holder in [parameters] if shared else [s.setdefault("parameters", {}) for s in sources]:
                    holder[parameter.name] = round(rng.uniform(0.1, 1.0), 2)
        else:
            sources = sources[:1]
        slices.append(
            {
                "sources": [{**source, "layer_range": [layer, last]} for source in sources],
                "parameters": parameters,
            }
        )
        layer = last
    return {"merge_method": "tailor", "base_model": family["base"], "dtype": "float32", "slices": slices}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in places(inner, (*path, key)))]


def mutate(document: Document, family: dict[str, str], rng: random.Random) -> Document:
    """Replace, drop, copy or rename something anywhere."""
    changed = copy.deepcopy(document)
    path = rng.choice(places(changed)[1:])
    holder: Any = changed
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    tokens = [*family.values(), *method_names(), "select", "merge", "remove", "bfloat16", "/nowhere"]
    moves: list[Callable[[], Any]] = [
        lambda: holder.__setitem__(key, rng.choice([*ODD, *tokens])),
        lambda: holder.__setitem__(key, old + rng.choice([-2, -1, 1, 9]) if type(old) is int else old),
        lambda: holder.pop(key),
        lambda: holder.insert(key, copy.deepcopy(old)) if isinstance(holder, list) else None,
        lambda: holder.__setitem__(f"{key}s", holder.pop(key)) if isinstance(holder, dict) else None,
        lambda: changed.setdefault("parameters", {}).__setitem__(
            rng.choice(["embeddings", "head", "tokenizer", "weight", "t", "normalize", "density", "op"]),
            rng.choice([*ODD, *family.values()]),
        ),
        lambda: changed.__setitem__(
            rng.choice(
                ["out_dtype", "chat_template", "merge_method", "slices", "models", "tokenizer_source"]
            ),
            rng.choice([*ODD, "float16", "auto", "chatml"]),
        ),
    ]
    rng.choice(moves)()
    return changed


@pytest.fixture(scope="module")
def families(
    make_family: MakeFamily, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, str]]:
    """One whose layers are all alike, one whose layers are not; the second has no tokenizer."""
    unlike = write_family(tmp_path_factory.mktemp("unlike"), "qwen3", torch.bfloat16)
    return make_family(depth=DEPTH), unlike


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 2**32), mutations=st.integers(0, 3))
def test_the_linter_tells_what_mergekit_will_do(
    seed: int, mutations: int, families: tuple[dict[str, str], dict[str, str]]
) -> None:
    rng = random.Random(seed)
    family = rng.choice(families)
    document = sound(family, rng)
    for _ in range(mutations):
        document = mutate(document, family, rng)
    try:
        recipe = Recipe.from_mapping(document)
        check(recipe)
        # Whether a model is on the Hub is not the linter's business, and there is no network here.
        assume(all(ModelId.parse(model).is_local for model in recipe.models))
    except InputError:
        refused = True
    else:
        refused = False
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "out"
        if refused:
            with pytest.raises(InputError):
                materialize(Recipe.from_mapping(document), out)
            assert not list(Path(root).iterdir())
        else:
            materialize(recipe, out)  # loads it back
            assert (out / "config.json").exists()
