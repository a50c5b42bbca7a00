"""Tiny families, made on the fly."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptailor_merge.testing.tiny_models import DEPTH as DEPTH
from gptailor_merge.testing.tiny_models import VOCABULARY as VOCABULARY
from gptailor_merge.testing.tiny_models import write_member as write_member

DEMO = Path(__file__).parent.parent / "recipes" / "demo"

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Keeps all that is imported out of garbage collections, which the package asks for after every model."""
    gc.collect()
    gc.freeze()


TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "loglikelihood": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{options[0]}}",
        "metric_list": [{"metric": "perplexity", "higher_is_better": False}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{options[0]}}",
        "generation_kwargs": {"until": ["="], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
}
"""A local task of each kind that lm-eval has, all over the same items."""


MakeFamily = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> MakeFamily:
    """name -> directory of base, math and code; the same arguments give the same directories."""
    made: dict[str, dict[str, str]] = {}

    def make(**options: object) -> dict[str, str]:
        key = repr(sorted(options.items(), key=str))
        if key not in made:
            root = tmp_path_factory.mktemp("family")
            made[key] = {
                name: str(write_member(root / name, seed, **options))  # type: ignore[arg-type]
                for seed, name in enumerate(("base", "math", "code"))
            }
        return made[key]

    return make


@pytest.fixture(scope="session")
def family(make_family: MakeFamily) -> dict[str, str]:
    """The plain family: bfloat16, untied."""
    return make_family()


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """name -> a .jsonl file of characters that the tiny tokenizer knows."""
    root = tmp_path_factory.mktemp("texts")
    files = {}
    for name, words in (("stories", "ONCE UPON A TIME"), ("sums", "1+2=3; 40*2=80?")):
        path = root / f"{name}.jsonl"
        path.write_text("".join(f'{{"text": "{words[i:] + words[:i]}"}}\n' for i in range(len(words))))
        files[name] = str(path)
    return files


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a local task of each kind over the same 12 items."""
    return write_tasks(tmp_path, monkeypatch)


def write_tasks(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the fixture `tasks` is, in a directory of one's own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", root / "cache")
    directory = root / "tasks"
    directory.mkdir()
    items = directory / "items.jsonl"
    rows = [
        {"question": f"{n}+{n}=", "options": [f"{n}2", "?", "7", "A B"], "label": n % 4} for n in range(11)
    ]
    # Longer than the models' context, in tokens that are characters.
    rows.append({"question": "ONCE UPON A TIME " * 6, "options": ["1", "123", "4", "A"], "label": 1})
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(items)}}}
        task = {"task": f"tiny_{name}", **data, "test_split": "test", **kind}
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return directory


def recipe_of(
    family: dict[str, str], merge: dict[str, object] | None = None, **top: object
) -> dict[str, object]:
    """A recipe with a select, a remove, and a merge of two slots in a document."""
    base, math, code = family["base"], family["math"], family["code"]
    made = merge or {
        "sources": [
            {"model": math, "layer_range": [2, 4], "parameters": {"weight": 0.6}},
            {"model": code, "layer_range": [2, 4], "parameters": {"weight": [0.2, 0.4]}},
        ],
        "parameters": {"op": "merge", "method": "task_arithmetic"},
    }
    return {
        "merge_method": "tailor",
        "base_model": base,
        "dtype": "float32",
        "slices": [
            {"sources": [{"model": math, "layer_range": [0, 1]}], "parameters": {"op": "select"}},
            {"sources": [{"model": base, "layer_range": [1, 2]}], "parameters": {"op": "remove"}},
            made,
            {"sources": [{"model": base, "layer_range": [4, 5]}], "parameters": {"op": "select"}},
        ],
        **top,
    }
