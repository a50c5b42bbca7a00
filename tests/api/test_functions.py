"""The functions on the tiny family: what the commands do, as values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gptailor_merge as gptailor
from gptailor_merge import Candidate, ConfigError, InputError, Recipe, Run, SearchConfig
from tests.conftest import recipe_of

CPU = {"device": "cpu"}


@pytest.fixture
def config(family: dict[str, str], texts: dict[str, str], tmp_path: Path) -> SearchConfig:
    held_out = {}
    for name, file in texts.items():
        held_out[name] = str(tmp_path / f"{name}.jsonl")
        rows = [json.loads(line)["text"][::-1] for line in Path(file).read_text().splitlines()]
        Path(held_out[name]).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    sizes = {"tokens": 64, "sequence_length": 16}
    document = {
        "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
        "target": {"remove": 2},
        "repair": {"texts": "scored"},
        "tune": {"steps": 0},
        "writes": {"tokens": 0},
        "objectives": [{"kind": "kl", "data": texts, **sizes}],
        "held_out": [{"kind": "perplexity", "data": held_out, **sizes}],
        "search": {"budget": 12, "population": 4},
    }
    return SearchConfig.model_validate(document)


@pytest.fixture
def recipe(family: dict[str, str]) -> Recipe:
    return Recipe.from_mapping(recipe_of(family, dtype="float32", out_dtype="bfloat16"))


def test_ten_lines_search_look_and_preview(config: SearchConfig, tmp_path: Path) -> None:
    begun: list[int] = []
    seen: list[Candidate] = []
    run = gptailor.search(config, tmp_path / "run", **CPU, on_begin=begun.append, on_candidate=seen.append)
    summary = run.summary()
    assert begun == [12]
    assert [candidate.number for candidate in seen] == list(range(12))
    assert set(summary.held_out) == {"base", "math", "code", "found"}
    assert Run.open(run.path).record().counts == summary.counts
    assert gptailor.report(run) == run.report
    assert gptailor.plan(Recipe.load(run.best)).digest == summary.digest
    uploads = gptailor.preview_push(run, "me/tailored", license="apache-2.0")
    assert (uploads / "README.md").is_file()
    with gptailor.watch(run) as server:
        assert server.url.startswith("http://127.0.0.1:")


def test_a_baseline_is_a_run_as_well(config: SearchConfig, tmp_path: Path) -> None:
    run = gptailor.baseline("shortgpt", config, tmp_path / "run", **CPU, member="math")
    assert run.summary().baseline == "shortgpt of math"


def test_an_unknown_executor_is_refused(config: SearchConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown executor, found 'locla'; did you mean 'local'"):
        gptailor.search(config, tmp_path / "run", executor="locla")
    assert not (tmp_path / "run").exists()


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run directory"):
        Run.open(tmp_path)


def test_recipes_are_values_or_files(recipe: Recipe, texts: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(recipe.to_yaml())
    assert gptailor.lint(recipe) == gptailor.lint(file) == gptailor.plan(recipe)
    scores = gptailor.score(recipe, list(texts.values()), tokens=64, sequence_length=16, **CPU)
    assert scores == gptailor.score(file, list(texts.values()), tokens=64, sequence_length=16, **CPU)
    assert set(scores.total.to_json()) == {"nll", "perplexity", "tokens"}
    plan = gptailor.materialize(recipe, tmp_path / "model")
    assert gptailor.check(tmp_path / "model").totals.layers == len(plan.slots)
    ids = torch.tensor([[3, 14, 15, 9, 2, 6]])
    composed, written = (gptailor.compose(model, **CPU) for model in (recipe, tmp_path / "model"))
    assert torch.equal(composed(ids).logits, written(ids).logits)
    exported = gptailor.export_recipe(recipe, tmp_path / "plain")
    assert exported.command.startswith("mergekit-")
    imported = gptailor.import_recipe(_stack(recipe, tmp_path), tmp_path / "imported.yml")
    assert gptailor.lint(tmp_path / "imported.yml") == gptailor.plan(imported.recipe)


def _stack(recipe: Recipe, directory: Path) -> Path:
    sources: list[dict[str, Any]] = [{"model": recipe.base_model, "layer_range": [0, 2]}]
    file = directory / "stack.yml"
    file.write_text(json.dumps({"merge_method": "passthrough", "slices": [{"sources": sources}]}))
    return file


def test_a_repair_appears_whole_or_not_at_all(recipe: Recipe, texts: dict[str, str], tmp_path: Path) -> None:
    data = [f"{name}={file}" for name, file in texts.items()]
    options: dict[str, Any] = {"sequence_length": 16, **CPU}
    result = gptailor.repair(recipe, data, tmp_path / "repaired", tokens=256, **options)
    assert Recipe.load(tmp_path / "repaired" / "recipe.yml") == result.recipe
    with pytest.raises(InputError, match="no file has 4 sequences"):
        gptailor.repair(recipe, data, tmp_path / "few", tokens=32, **options)
    assert not (tmp_path / "few").exists()


def test_tasks_are_run_on_a_recipe_and_its_members(recipe: Recipe, tasks: Path) -> None:
    evaluation = gptailor.evaluate(recipe, ["tiny_choice"], include_path=tasks, limit=4, **CPU)
    assert len(evaluation.models) == 1 + len(recipe.models)


def test_a_session_scores_composes_and_searches(config: SearchConfig) -> None:
    session = gptailor.open_session(config, **CPU)
    assert session.space == gptailor.space_of(config)
    plan = session.select(0, {1, 2})
    (loss,) = session.losses([plan])
    (held_out,) = session.held_out([plan])
    assert loss > 0
    assert set(held_out) == {"perplexity"}
    assert session.compose(plan).config.num_hidden_layers == len(plan.slots) == 3
    assert session.decode(session.encode(plan)).digest == plan.digest
    assert gptailor.plan(session.recipe(plan)).digest == plan.digest
    assert set(session.members()) == {"base", "math", "code"}

    trace = session.search(budget=8, seed=3)
    assert [candidate.number for candidate in trace.candidates] == list(range(8))
    again = session.search(budget=8, seed=3, tokens=trace.tokens[3])
    assert len(again.candidates) == 4
    assert [c.digest for c in again.candidates] == [c.digest for c in trace.candidates[:4]]
    assert len(trace.affordable(trace.tokens[3])) >= 4
    pruned = session.prune("shortgpt", member="math")
    assert gptailor.plan(gptailor.recipe_of(pruned.candidates[-1])).kept == pruned.candidates[-1].plan.kept


def test_a_session_starts_where_its_config_says(config: SearchConfig) -> None:
    search = config.search.model_copy(update={"warm_start": ("shortgpt",), "budget": 64})
    session = gptailor.open_session(config.model_copy(update={"search": search}), **CPU)
    (pruned,) = {c.digest for c in session.prune("shortgpt").candidates if len(c.plan.slots) == 3}
    found = session.search(budget=12).candidates
    assert found[0].plan.kept == tuple(range(5))  # the whole base, whose layers are looked at
    assert pruned in {candidate.digest for candidate in found}


def test_a_plan_with_a_head_of_its_own_is_written_whole(config: SearchConfig, family: dict[str, str]) -> None:
    session = gptailor.open_session(config, **CPU)
    document = recipe_of(family, dtype="float32", parameters={"head": family["math"]})
    plan = gptailor.plan(Recipe.from_mapping(document))
    assert gptailor.plan(session.recipe(plan)).digest == plan.digest
