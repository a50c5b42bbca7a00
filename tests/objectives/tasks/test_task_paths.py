"""Paths of data in a task's file start at the file, wherever the command is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gptailor_merge.objectives.tasks.harness import load_tasks
from gptailor_merge.objectives.tasks.task_paths import located_paths
from tests.conftest import TASKS


def test_paths_that_exist_beside_the_file_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "json").mkdir()
    here = str(tmp_path)
    located = located_paths(
        {
            "task": [
                {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": ["a.jsonl", "b.jsonl"]}}},
                {"dataset_path": "./json", "dataset_kwargs": {"data_dir": "~/json"}},
                {"dataset_path": "json", "dataset_kwargs": {"data_files": "*.jsonl"}},
                {"dataset_path": "org/name", "doc_to_text": "json"},
                {"dataset_path": "~"},
                {"dataset_path": "json"},
            ]
        },
        tmp_path,
    )
    assert located["task"] == [
        {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": [f"{here}/a.jsonl", "b.jsonl"]}}},
        {"dataset_path": "./json", "dataset_kwargs": {"data_dir": f"{here}/json"}},
        {"dataset_path": "json", "dataset_kwargs": {"data_files": f"{here}/*.jsonl"}},
        {"dataset_path": "org/name", "doc_to_text": "json"},
        {"dataset_path": here},
        {"dataset_path": f"{here}/json"},
    ]


def test_a_task_finds_its_items_from_anywhere(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "items.jsonl"}}}
    for name in ("near", "member"):
        task = {"task": name, **data, "test_split": "test", **TASKS["choice"]}
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(task))
    (tasks / "group.yaml").write_text(yaml.safe_dump({"group": "near_group", "task": ["member"]}))
    monkeypatch.chdir("/")
    loaded = load_tasks(("near", "near_group"), tasks)
    assert {name: len(task.dataset["test"]) for name, task in loaded.items()} == {"near": 12, "member": 12}
