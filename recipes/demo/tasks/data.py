"""The items, beside this file: a path in a task's YAML would start where lm-eval is run."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset, DatasetDict

SPLITS = ("validation", "test")


def load(items: str, **metadata: object) -> DatasetDict:
    """Both splits of a task's items; lm-eval also hands over the task's metadata."""
    return DatasetDict({split: _read(Path(__file__).parent / split / f"{items}.jsonl") for split in SPLITS})


def _read(file: Path) -> Dataset:
    with file.open(encoding="utf-8") as lines:
        return Dataset.from_list([json.loads(line) for line in lines])
