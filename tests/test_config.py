"""Search configs are read, checked, resolved and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.objectives.config_types import DatasetConfig, FileConfig
from gptailor_merge.runs.claim import as_begun
from gptailor_merge.runs.directory import Directory


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Write a sound config with changes, and give its path."""
    (tmp_path / "cal").mkdir()
    (tmp_path / "cal" / "stories.jsonl").write_text('{"text": "A"}\n')
    (tmp_path / "models" / "base").mkdir(parents=True)

    def make(**changes: Any) -> Path:
        document = {
            "family": {"base": "models/base", "variants": {"math": "org/math@v1"}},
            "target": {"layers": 9},
            "objectives": [{"kind": "kl", "data": {"stories": "cal/stories.jsonl"}}],
            **changes,
        }
        (tmp_path / "search.yml").write_text(yaml.safe_dump(document, sort_keys=False))
        return tmp_path / "search.yml"

    return make


def test_everything_else_has_a_default(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = SearchConfig.load(write())
    assert config.operations.merge == ("task_arithmetic", "slerp")
    assert (config.operations.protect.first, config.operations.protect.last) == (1, 1)
    assert (config.search.budget, config.search.population, config.seed) == (200, 16, 0)
    assert config.objectives[0].tokens == 32768
    assert config.objectives[0].teacher_of("stories") == "base"


def test_paths_are_relative_to_the_file(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = SearchConfig.load(write())
    assert config.family.base == str(tmp_path / "models" / "base")
    assert config.family.variants == {"math": "org/math@v1"}
    assert config.objectives[0].data == {"stories": str(tmp_path / "cal" / "stories.jsonl")}


def test_every_form_of_data_is_found_beside_the_file_or_at_home(  # type: ignore[no-untyped-def]
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "cal"))
    data = {
        "column": {"file": "cal/stories.jsonl", "column": "content"},
        "home": "~/stories.jsonl",
        "directory": "cal",
        "set": {"dataset": "cal", "split": "train"},
        "set_at_home": {"dataset": "~", "column": "content"},
        "hub": {"dataset": "org/texts"},
    }
    objective = {"kind": "kl", "data": data}
    config = SearchConfig.load(
        write(objectives=[objective], repair={"data": {"a": {"file": "~/stories.jsonl"}}})
    )
    stories, cal = str(tmp_path / "cal" / "stories.jsonl"), str(tmp_path / "cal")
    assert config.objectives[0].data == {
        "column": FileConfig(file=stories, column="content"),
        "home": stories,
        "directory": cal,
        "set": DatasetConfig(dataset=cal, split="train"),
        "set_at_home": DatasetConfig(dataset=cal, column="content"),
        "hub": DatasetConfig(dataset="org/texts"),
    }
    assert config.repair.data == {"a": FileConfig(file=stories)}
    (tmp_path / "config.yml").write_text(config.to_yaml())
    assert SearchConfig.load(tmp_path / "config.yml") == config
    assert str(tmp_path) not in config.objectives[0].sentence()


def test_what_a_run_records_is_read_back(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = SearchConfig.load(write()).override(budget=7, seed=3)
    (tmp_path / "config.yml").write_text(config.to_yaml())
    assert SearchConfig.load(tmp_path / "config.yml") == config
    recorded = yaml.safe_load(config.to_yaml())
    assert recorded["environment"]["mergekit"].startswith("0.1.")
    assert recorded["search"]["budget"] == 7
    assert config.differences(config.override(budget=9)) == []
    assert config.differences(config.override(seed=9)) == ["seed"]


ACCURACY = {"kind": "task", "tasks": ["piqa"], "metric": "acc"}


@pytest.mark.parametrize(
    ("changes", "tuned"),
    [
        ({}, 1),
        ({"tune": {"finalists": 3}}, 3),
        ({"tune": {"finalists": 3, "steps": 0}}, 0),
        ({"target": {"remove": 0}}, 0),
        ({"target": {"remove": 0}, "tune": {"finalists": 1}}, 1),
        ({"target": {"layers": [6, 9]}}, 0),
        ({"objectives": [ACCURACY]}, 0),
        ({"objectives": [{**ACCURACY, "metric": "margin"}]}, 1),
    ],
)
def test_the_best_recipe_is_tuned_where_that_pays_and_can_be(
    write: Any, tmp_path: Path, changes: dict[str, Any], tuned: int
) -> None:
    config = SearchConfig.load(write(**changes))
    assert config.tuned == tuned
    assert config.override(tune=False).tuned == 0
    (tmp_path / "config.yml").write_text(config.to_yaml())
    assert SearchConfig.load(tmp_path / "config.yml").tuned == tuned


def test_a_run_of_a_version_that_did_not_tune_goes_on_without(write: Any, tmp_path: Path) -> None:
    config = SearchConfig.load(write())
    recorded = yaml.safe_load(config.to_yaml())
    del recorded["tune"]
    run = Directory(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(yaml.safe_dump(recorded))
    assert SearchConfig.load(run.config).tuned == 0
    run.journal.touch()
    assert as_begun(config, run).tuned == 0
    assert as_begun(SearchConfig.load(write(tune={"steps": 9})), run).tuned == 1


def test_a_recipe_is_told_from_a_search_config(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text("merge_method: tailor\nbase_model: m\nslices: []\n")
    with pytest.raises(ConfigError) as caught:
        SearchConfig.load(file)
    assert str(caught.value) == (
        f"{file}:1: merge_method: this is a recipe, which gptailor merge reads; "
        "expected a search config, with a family"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": {"base": "m", "variants": ["a"]}}, "family.variants: expected a mapping, found ['a']"),
        ({"famly": {}}, "famly: unknown key; did you mean 'family'?"),
        ({"[one]": {}}, "[one]: unknown key; known are allow_test_split, batch_tokens"),
        ({"target": {"layers": 9, "remove": 3}}, "target: expected one of layers, remove, parameters, found"),
        ({"target": {}}, "target: expected one of layers, remove, parameters, found none"),
        ({"target": {"layers": 0}}, "target.layers: input should be greater than or equal to 1, found 0"),
        ({"target": {"layers": "9"}}, "target.layers: input should be a valid integer, found '9'"),
        (
            {"target": {"layers": [9, 6]}},
            "target.layers: expected one size or a range [smallest, largest], found [9, 6]",
        ),
        ({"target": {"layers": [0, 6]}}, "target.layers[0]: input should be greater than or equal to 1"),
        (
            {"search": {"pick": "best"}},
            "search.pick: expected knee, best:OBJECTIVE or layers=N, found 'best'",
        ),
        (
            {"target": {"layers": [6, 9]}, "search": {"pareto": False}},
            "search.pareto: a range of sizes, and a cost without a weight, are of use for a front only",
        ),
        ({"search": {"pareto": True}}, "search.pareto: a front is one of several objectives"),
        (
            {"gates": [{"kind": "perplexity", "data": {"a": "cal/stories.jsonl"}}]},
            "gates[0]: expected one of at_most, at_least, found none",
        ),
        (
            {"gates": [{"kind": "bytes", "at_most": "1.5 base"}]},
            "gates[0].at_most: expected a number, or a multiple of the base's as in '1.5 x base', found '1.5",
        ),
        (
            {"gates": [{"kind": "bytes", "at_mots": 3}]},
            "gates[0].at_mots: unknown key; did you mean 'at_most'?",
        ),
        (
            {"objectives": [{"kind": "task", "tasks": ["t"], "include_path": "none"}]},
            "objectives[0].include_path: no such directory, found 'none'; looked for",
        ),
        (
            {"objectives": [{"kind": "bytes", "at_most": 3}]},
            "objectives[0].at_most: unknown key; known are kind, tokens, weight",
        ),
        ({"batch_tokens": "fast"}, "batch_tokens: expected a whole number from 1, or auto, found 'fast'"),
        ({"batch_tokens": 0}, "batch_tokens: expected a whole number from 1, or auto, found 0"),
        ({"search": {"budgte": 3}}, "search.budgte: unknown key; did you mean 'budget'?"),
        ({"objectives": []}, "objectives: "),
        (
            {"objectives": [{"kind": "ppl", "data": {"a": "b"}}]},
            "objectives[0]: expected a mapping with a kind of kl, perplexity, task, repetition, parameters, bytes, kv_cache, "
            "prefill_latency, decode_latency, found 'ppl'",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": "cal/none.jsonl"}}]},
            "objectives[0].data.a: no such file, found 'cal/none.jsonl'; looked for",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": {"file": "~/none.jsonl", "column": "b"}}}]},
            "objectives[0].data.a: no such file, found '~/none.jsonl'; looked for /",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": {"file": "a", "colum": "b"}}}]},
            "objectives[0].data.a: colum: unknown key; did you mean 'column'?",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": {"dataset": "./none"}}}]},
            "objectives[0].data.a.dataset: no such directory, found './none'; looked for",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": "models/base"}}]},
            "models/base: the directory holds no texts; expected a .jsonl, .json or .txt file",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": "search.yml"}}]},
            "search.yml: expected a .jsonl, .json or .txt file, any of them also as .gz, or a .parquet file, or a dir",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": "cal/stories.jsonl"}, "teacher": {"a": "maths"}}]},
            "objectives[0].teacher.a: no such member, found 'maths'; known are base, math",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": "cal/stories.jsonl"}, "teacher": {"b": "math"}}]},
            "objectives[0]: teacher names data that is not there, found ['b']",
        ),
        (
            {"objectives": [{"kind": "perplexity", "data": {"a": "cal/stories.jsonl"}, "teacher": "math"}]},
            "objectives[0]: only kl takes a teacher, found kind: perplexity",
        ),
        (
            {"family": {"base": "b", "variants": {"a": "b"}}},
            "variants.a: the same model as base; members must differ",
        ),
        ({"family": {"base": ""}}, "family.base: expected a name, not an empty text"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, found -1"),
        ({"objectives": [{"kind": "kl", "data": {"a": 3}}]}, "objectives[0].data.a: expected a file, or"),
        (
            {"objectives": [{"kind": "kl", "data": {"a": {"datset": "x"}}}]},
            "objectives[0].data.a: dataset: is missing; datset: unknown key; did you mean 'dataset'?",
        ),
        ({"family": {"base": "b", "variants": {"base": "c"}}}, "the name base is the base model's"),
    ],
)
def test_mistakes_are_named(write, changes: dict[str, Any], message: str) -> None:  # type: ignore[no-untyped-def]
    file = write(**changes)
    with pytest.raises(ConfigError) as caught:
        SearchConfig.load(file)
    assert str(caught.value).startswith(f"{file}:")
    assert message in str(caught.value)


def test_a_range_of_sizes_is_searched_for_its_front(write) -> None:  # type: ignore[no-untyped-def]
    config = SearchConfig.load(write(target={"layers": [6, 9]}))
    assert config.pareto
    assert config.target.layers == (6, 9)
    assert [objective.kind for objective in config.objectives] == ["kl", "parameters"]
    assert not SearchConfig.load(write()).pareto


def test_a_cost_with_a_weight_is_added_to_the_loss(write) -> None:  # type: ignore[no-untyped-def]
    text = {"kind": "kl", "data": {"stories": "cal/stories.jsonl"}}
    assert not SearchConfig.load(write(objectives=[text, {"kind": "bytes", "weight": 0.1}])).pareto
    assert SearchConfig.load(write(objectives=[text, {"kind": "bytes"}])).pareto


def test_bounds_are_numbers_or_multiples_of_the_bases_score(write) -> None:  # type: ignore[no-untyped-def]
    gates = [
        {"kind": "perplexity", "data": {"a": "cal/stories.jsonl"}, "at_most": "1.5 x base"},
        {"kind": "task", "tasks": ["t"], "metric": "acc", "at_least": 0.25},
    ]
    perplexity, accuracy = SearchConfig.load(write(gates=gates)).gates
    assert perplexity.threshold(of_base=10.0) == 15.0
    assert perplexity.holds(15.0, of_base=10.0)
    assert not perplexity.holds(15.1, of_base=10.0)
    assert accuracy.holds(0.25, of_base=0.9)
    assert not accuracy.holds(0.24, of_base=0.1)
