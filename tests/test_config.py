from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError


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


def test_what_a_run_records_is_read_back(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = SearchConfig.load(write()).override(budget=7, seed=3)
    (tmp_path / "config.yml").write_text(config.to_yaml())
    assert SearchConfig.load(tmp_path / "config.yml") == config
    recorded = yaml.safe_load(config.to_yaml())
    assert recorded["environment"]["mergekit"].startswith("0.1.")
    assert recorded["search"]["budget"] == 7
    assert config.differences(config.override(budget=9)) == []
    assert config.differences(config.override(seed=9)) == ["seed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"famly": {}}, "famly: unknown key; did you mean 'family'?"),
        ({"target": {"layers": 9, "remove": 3}}, "target: expected one of layers, remove, parameters, found"),
        ({"target": {}}, "target: expected one of layers, remove, parameters, found none"),
        ({"target": {"layers": 0}}, "target.layers: input should be greater than or equal to 1, found 0"),
        ({"target": {"layers": "9"}}, "target.layers: input should be a valid integer, found '9'"),
        ({"search": {"budgte": 3}}, "search.budgte: unknown key; did you mean 'budget'?"),
        ({"objectives": []}, "objectives: "),
        (
            {"objectives": [{"kind": "ppl", "data": {"a": "b"}}]},
            "objectives[0]: expected a mapping with a kind of kl, perplexity, task, found",
        ),
        (
            {"objectives": [{"kind": "kl", "data": {"a": "cal/none.jsonl"}}]},
            "objectives[0].data.a: no such file, found 'cal/none.jsonl'; looked for",
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
