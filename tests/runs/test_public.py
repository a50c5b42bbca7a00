"""No path of this machine is shown."""

from __future__ import annotations

import pytest

from gptailor_merge.runs.public import public, public_name


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/model", "org/model"),
        ("org/model@refs/pr/1", "org/model@refs/pr/1"),
        ("model", "model"),
        ("/home/alice/models/base", "base"),
        ("/home/alice/me@work+home", "me@work+home"),
        ("/home/al+ice/base", "al+base"),
        ("../models/base", "base"),
        ("~/models/base", "base"),
        (r"C:\Users\alice\base", "base"),
        ("org/model+/home/alice/adapter", "org/model+adapter"),
        ("/home/alice/base+org/adapter", "base+adapter"),
        ("/home/alice/base+/home/alice/adapter", "base+adapter"),
    ],
)
def test_of_a_path_its_name_is_shown(model: str, shown: str) -> None:
    assert public_name(model) == shown


def test_documents_lose_their_paths_in_keys_and_lists_too() -> None:
    document = {
        "weights": {"/home/alice/base": 0.5},
        "data": ["/home/alice/a.jsonl", {"dataset": "org/data"}],
        "file": "alice/start.yml",
        "seed": 0,
    }
    assert public(document) == {
        "weights": {"base": 0.5},
        "data": ["a.jsonl", {"dataset": "org/data"}],
        "file": "start.yml",
        "seed": 0,
    }
