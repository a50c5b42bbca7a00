"""What a run searches on, and what it reports, are never the same items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.scoring.measures import Measures, measures, reported
from gptailor_merge.scoring.teachers import Teachers

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")


@pytest.fixture
def build(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Measures of a config whose tasks have the given splits, each a list of questions."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = Family.load(family["base"], {})
    tokenizer = load_tokenizer(Path(family["base"]))

    def make(splits: dict[str, list[str]], declared: dict[str, str], **config: Any) -> Measures:
        (tmp_path / "tasks").mkdir(exist_ok=True)
        files = {}
        for name, questions in splits.items():
            files[name] = str(tmp_path / "tasks" / f"{name}.jsonl")
            rows = [
                {"question": q, "options": ["1", "2", "A B", "?"], "label": n % 4}
                for n, q in enumerate(questions)
            ]
            Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": "sums",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}],
            **declared,
        }
        (tmp_path / "tasks" / "sums.yaml").write_text(yaml.safe_dump(task))
        of_task = {
            "kind": "task",
            "tasks": ["sums"],
            "include_path": str(tmp_path / "tasks"),
            "metric": "margin",
        }
        document = {
            "family": {"base": family["base"]},
            "target": {"layers": 3},
            "objectives": [of_task],
            **config,
        }
        for section in ("objectives", "gates", "held_out"):
            document[section] = [
                {**of_task, **entry} if entry.get("kind", "task") == "task" else entry
                for entry in document.get(section, [])
            ]
        checked = SearchConfig.model_validate(document)
        return measures(checked, tokenizer, Teachers(loaded, CPU, torch.float32), torch.float32)

    return make


def questions(first: int, count: int) -> list[str]:
    return [f"{n}+{n}=" for n in range(first, first + count)]


def documents(measured: Measures, section: str) -> dict[str, set[str]]:
    """Objective -> the items that it is measured on."""
    passes = {"objectives": measured.searched, "gates": measured.gates, "held_out": measured.held_out}[
        section
    ]
    return {o.name: {text for units in o.sets for text in units.documents} for o in passes.objectives}


def test_what_is_searched_on_is_reported_on_the_test_split(build: Any) -> None:
    """It is reported by the margin that is climbed, and by the accuracy that people know."""
    splits = {"validation": questions(0, 6), "test": questions(10, 8)}
    measured = build(splits, {"validation_split": "validation", "test_split": "test"})
    assert [(i.section, i.objective, i.task, i.split, len(i.ids)) for i in measured.items] == [
        ("objectives", "margin", "sums", "validation", 6),
        ("held_out", "margin", "sums", "test", 8),
        ("held_out", "acc", "sums", "test", 8),
    ]
    assert [(pair.searched, pair.held_out, pair.sets) for pair in measured.pairs] == [
        ("margin", "margin", ("sums",))
    ]
    assert measured.warnings == ()


def test_a_split_that_serves_both_is_divided_by_the_text_of_its_items(build: Any) -> None:
    """The same item twice is on one side."""
    measured = build(
        {"validation": [*questions(0, 40), *questions(0, 40)]}, {"validation_split": "validation"}
    )
    searched, held_out = (
        documents(measured, "objectives")["margin"],
        documents(measured, "held_out")["margin"],
    )
    assert searched
    assert held_out
    assert not searched & held_out
    assert len(searched | held_out) == 40


def test_a_limit_takes_a_subset_that_the_seed_chooses(build: Any) -> None:
    splits, declared = {"validation": questions(0, 30), "test": questions(40, 9)}, {"test_split": "test"}
    declared["validation_split"] = "validation"
    taken = [
        build(splits, declared, objectives=[{"limit": 10}], seed=seed).items[0].ids for seed in (1, 1, 2)
    ]
    assert taken[0] == taken[1] != taken[2]
    assert len(taken[0]) == 10
    assert sorted(taken[0]) != list(range(10))
    assert {n % 4 for n in taken[0]} == {0, 1, 2, 3}  # every place of the right answer


def test_searching_on_the_test_split_needs_leave_and_is_told(build: Any) -> None:
    splits, declared = {"test": questions(0, 20)}, {"test_split": "test"}
    with pytest.raises(ConfigError) as caught:
        build(splits, declared)
    assert "objectives[0].split: sums: 'test' is its test split, scores on it" in str(caught.value)
    assert "--allow-test-split" in str(caught.value)
    measured = build(splits, declared, allow_test_split=True)
    assert measured.warnings == (
        "sums: 'test' is its test split, and was searched on: scores on it flatter this model and no other",
    )
    both = {"test": questions(0, 20), "validation": questions(30, 20)}
    gate = {"split": "test", "metric": "acc", "at_least": 0.1}
    with pytest.raises(ConfigError, match=r"gates\[0\]\.split: sums: 'test' is its test split"):
        build(both, {"validation_split": "validation", "test_split": "test"}, gates=[gate])


def test_a_leaked_item_is_refused_or_left_out(build: Any) -> None:
    """White space and the order of the options do not make it another item."""
    splits = {"validation": questions(0, 6), "test": ["3+3=", " 4+4= ", *questions(10, 5)]}
    declared = {"validation_split": "validation", "test_split": "test"}
    with pytest.raises(ConfigError) as caught:
        build(splits, declared)
    assert (
        "held_out[0].tasks: 2 of 7 items of sums are also searched on (as sums), found '3+3= 1 2 ? A B'; "
        "expected other items; drop_leaks: true leaves them out" in str(caught.value)
    )
    measured = build(splits, declared, drop_leaks=True)
    assert [len(texts) for texts in documents(measured, "held_out").values()] == [5, 5]


def test_maps_are_fitted_to_more_of_the_texts_than_is_scored_and_to_nothing_held_out(
    build: Any, tmp_path: Path
) -> None:
    """The held-out documents stand further on in the file that the objective reads."""

    def lines(name: str, numbers: range) -> str:
        file = tmp_path / f"{name}.jsonl"
        texts = [f"DOCUMENT NUMBER {n} OF 40" for n in numbers]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return str(file)

    objective = {"kind": "perplexity", "data": {"a": lines("all", range(40))}, "sequence_length": 16}
    held_out = {**objective, "data": {"a": lines("held", range(20, 30))}}

    def fitted_to(**repair: Any) -> tuple[Any, Any]:
        config = {"objectives": [{**objective, "tokens": 64}], "held_out": [held_out], "repair": repair}
        measured = build({}, {}, **config)
        (texts,) = measured.texts
        return measured.searched.objectives[0].sets[0], texts

    scored, texts = fitted_to()
    assert len(scored.documents) < 5
    (longer,) = build({}, {}, objectives=[{**objective, "tokens": 80}]).searched.objectives[0].sets
    assert [ids.tolist() for ids in longer.sequences] == [
        ids.tolist() for ids in (*scored.sequences, texts.sequences[0])
    ]
    assert texts.documents == {f"DOCUMENT NUMBER {n} OF 40" for n in (*range(20), *range(30, 40))}
    assert {len(ids) for ids in texts.sequences} == {16}
    assert sum(map(len, fitted_to(tokens=256, sequence_length=32)[1].sequences)) == 256
    scored, texts = fitted_to(texts="scored", tokens=256)
    assert texts.digest == scored.digest
    assert build({}, {}, objectives=[objective], repair={"finalists": 0}).texts == ()


def test_gates_and_objectives_are_named_apart(build: Any, texts: dict[str, str]) -> None:
    splits = {"validation": questions(0, 6), "test": questions(10, 6)}
    declared = {"validation_split": "validation", "test_split": "test"}
    gates = [
        {"kind": "perplexity", "data": texts, "tokens": 64, "sequence_length": 16, "at_most": "1.5 x base"},
        {"metric": "acc", "at_least": 0.1},
        {"kind": "kv_cache", "at_most": 1000},
    ]
    measured = build(splits, declared, gates=gates, objectives=[{}, {"metric": "acc"}, {"kind": "bytes"}])
    assert list(documents(measured, "gates")) == ["gate: perplexity", "gate: acc", "gate: kv_cache"]
    assert list(documents(measured, "objectives")) == ["margin", "acc", "bytes"]
    assert list(documents(measured, "held_out")) == ["margin", "acc"]


def test_a_task_that_is_held_out_already_gets_the_metric_that_is_searched_on() -> None:
    of_task = {"kind": "task", "tasks": ["a", "b"], "metric": "margin", "limit": 5}
    held_out = [{"kind": "task", "tasks": ["a"], "split": "test", "metric": "acc"}]
    document = {
        "family": {"base": "x"},
        "target": {"layers": 3},
        "objectives": [of_task],
        "held_out": held_out,
    }
    measured = reported(SearchConfig.model_validate(document))
    assert [(config.tasks, config.split, config.metric, config.limit) for config in measured] == [  # type: ignore[attr-defined]
        (("a",), "test", "acc", None),
        (("a",), "test", "margin", None),
        (("b",), None, "margin", 5),
        (("a",), "test", None, None),
        (("b",), None, None, 5),
    ]
