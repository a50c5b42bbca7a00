"""Extensions are found by name, built in or of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from gptailor_merge import extensions
from gptailor_merge.errors import ConfigError
from gptailor_merge.extensions import Registry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    offers = [
        EntryPoint("join", "posixpath:join", "group"),
        EntryPoint("replaced", "posixpath:split", "group"),
        EntryPoint("gone", "no_such_module:thing", "group"),
        EntryPoint("twice", "posixpath:join", "group"),
        EntryPoint("twice", "posixpath:split", "group"),
    ]
    monkeypatch.setattr(extensions, "entry_points", lambda group: offers)
    extensions._entry_points.cache_clear()
    yield Registry("tool", "group", {"built_in": 1, "replaced": 2}, ConfigError)
    extensions._entry_points.cache_clear()


def test_built_in_extensions_come_first(registry: Registry[object]) -> None:
    assert list(registry) == ["built_in", "replaced", "join", "gone", "twice"]
    assert len(registry) == 5
    assert registry["built_in"] == 1


def test_an_entry_point_is_imported_when_it_is_asked_for(registry: Registry[object]) -> None:
    assert registry["join"]("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joim", "unknown tool, found 'joim'; did you mean 'join'"),
        ("gone", "the tool 'gone' of another package cannot be imported from no_such_module:thing: Module"),
        ("replaced", "several packages offer the tool 'replaced' .gptailor-merge and posixpath:split."),
        ("twice", "several packages offer the tool 'twice' .posixpath:join and posixpath:split."),
    ],
)
def test_what_cannot_be_found_is_a_sentence(name: str, message: str, registry: Registry[object]) -> None:
    with pytest.raises(ConfigError, match=message):
        registry[name]
