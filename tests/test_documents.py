"""Documents that a stranger wrote: bounded, read from regular files only, and errors that forge nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge import documents
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, InputError, Problem, RecipeError, RunError
from gptailor_merge.host.importing import load as import_file
from gptailor_merge.recipe.recipe import MOST_LAYERS, MOST_SOURCES, Recipe

HEAD = "merge_method: tailor\nbase_model: base\n"


def laughs(first: str, repeated: str, levels: int = 11) -> str:
    lines = [f"x0: &a0 {first}"]
    lines += [f"x{i}: &a{i} {repeated.format(','.join([f'*a{i - 1}'] * 9))}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def repeated_slice(range_text: str, times: int) -> str:
    part = f"  - {{sources: [{{model: base, layer_range: {range_text}}}], parameters: {{op: select}}}}\n"
    return HEAD + "slices:\n" + part * times


BOMBS = {
    "laughs": (
        HEAD + laughs("[1, 1, 1]", "[{}]") + "slices: *a10\n",
        "in line 8: expected at most 200,000 values",
    ),
    "laughing maps": (
        HEAD + laughs("{a: 1}", "{{k: [{}]}}") + "slices: []\n",
        "expected at most 200,000 values",
    ),
    "laughing merge keys": (
        HEAD + laughs("{a: 1}", "{{<<: [{}]}}") + "slices: []\n",
        "at most 200,000 values",
    ),
    "itself": (HEAD + "parameters: {weight: &w [1, *w]}\n", "in line 3: a value contains itself"),
    "itself as its key": (HEAD + "? &k [*k]\n: 1\n", "a value contains itself"),
    "deep lists": (HEAD + "slices: " + "[" * 60 + "]" * 60, "at most 40 levels"),
    "very deep lists": (HEAD + "slices: " + "[" * 50_000 + "]" * 50_000, "in line 3: "),
    "deep blocks": (HEAD + "slices:\n  " + "- " * 50_000, "in line 4: "),
    "deep by aliases": (
        HEAD + "x0: &a0 [1]\n" + "".join(f"x{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60)),
        "at most 40 levels",
    ),
    "digits": (
        HEAD + f"slices: {'9' * 5000}\n",
        "in line 3: expected a number of at most 64 characters, found 5,000",
    ),
    "sixties": (HEAD + f"slices: {'1' + ':1' * 90_000}\n", "a number of at most 64 characters"),
    "hex": (HEAD + f"slices: 0x{'f' * 90_000}\n", "a number of at most 64 characters"),
    "exponent": (HEAD + f"slices: 1.0e+{'9' * 30}\n", "slices: expected a list, found inf"),
    "nineteen digits": (HEAD + f"slices: {10**18}\n", "numbers of at most 18 digits"),
    "no date": (HEAD + "slices: 2020-13-45\n", "in line 3: no such value: month must be in 1..12"),
    "no int": (HEAD + "slices: !!int x\n", "in line 3: no such value"),
    "no bool": (HEAD + "slices: !!bool x\n", "in line 3: no such value"),
    "no timestamp": (HEAD + "slices: !!timestamp x\n", "in line 3: no such value"),
    "an object": (
        HEAD + "slices: !!python/object/apply:os.system [true]\n",
        "in line 3: could not determine",
    ),
    "a control character": (HEAD + "slices: \x1b[2J\n", "control characters are not allowed"),
    "a key twice": (
        HEAD + "slices: []\ndtype: float32\ndtype: bfloat16\n",
        "'dtype' is there already, in line 4",
    ),
    "a long file": (HEAD + "#" * (5 * 1024**2), "expected at most 4,194,304 bytes, found more"),
    "a long range": (repeated_slice("[0, 1000000000]", 1), "expected numbers of at most 4,096"),
    "a low range": (repeated_slice("[-1000000000, 0]", 1), "expected numbers of at most 4,096"),
    "many ranges": (repeated_slice(f"[0, {MOST_LAYERS}]", 5), f"at most {MOST_SOURCES:,} layers in all"),
    "a long name": (HEAD.replace(": base", ": " + "a" * 5000) + "slices: []\n", "at most 1024 characters"),
    "a long list": (
        HEAD + f"parameters: {{weight: [{'1, ' * 2000}]}}\nslices: []\n",
        "at most 1,024 entries",
    ),
    "many mistakes": (HEAD + "slices: []\n" + "".join(f"k{i}: 1\n" for i in range(5000)), "and 4,980 more"),
    "not UTF-8": ("merge_method: \udcff\n", "cannot be read: 'utf-8' codec"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_explodes_is_one_sentence_at_once(name: str, tmp_path: Path) -> None:
    text, message = BOMBS[name]
    file = tmp_path / "recipe.yml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    begun = time.process_time()
    with pytest.raises(RecipeError) as caught:
        Recipe.load(file)
    assert time.process_time() - begun < 2
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}:")
    assert len(str(caught.value)) < 20_000
    assert str(caught.value).isprintable() or name == "many mistakes"


@pytest.mark.parametrize("name", [name for name in BOMBS if "range" not in name])
def test_search_configs_and_foreign_recipes_are_bounded_too(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file.yml"
    file.write_bytes(BOMBS[name][0].encode("utf-8", "surrogateescape"))
    for load, error in ((SearchConfig.load, ConfigError), (import_file, RecipeError)):
        begun = time.process_time()
        with pytest.raises(error):
            load(file)
        assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "document",
    [
        {"remove_idx_0": 10**12, "layer_0_candidate_0": True},
        {"remove_idx_0": float("inf")},
        {"remove_idx_0": -1},
        {"remove_idx_0": 0, "layer_99999_candidate_0": True},
    ],
)
def test_layers_of_the_papers_configurations_are_bounded(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "paper.yml"
    file.write_text(documents.write_yaml(document))
    with pytest.raises(RecipeError, match=r"remove_idx_0|layer_99999"):
        import_file(file, base="base", candidates=["base"])


WORDS = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=9)
PLAIN = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | WORDS
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner))


@given(st.dictionaries(WORDS, TREES, max_size=3))
def test_a_document_that_is_written_fast_reads_as_one_that_is_written_well(document: dict[str, Any]) -> None:
    for write in (documents.write_yaml, documents.write_yaml_fast):
        assert documents.parse_yaml(write(document), RecipeError) == document


def test_values_that_mergekit_has_read_are_bounded() -> None:
    """The hook is handed values, in which aliases are the same object."""
    wide: Any = [1]
    for _ in range(60):
        wide = [wide] * 9 if len(wide) < 9 else {"a": wide, "b": wide}
    for value in (wide, [10**5000]):
        with pytest.raises(RecipeError, match="expected"):
            Recipe.from_mapping({"merge_method": "tailor", "base_model": "base", "slices": value})


@pytest.mark.parametrize("name", ["pipe", "null", "directory", "a\0b", "n" * 5000])
def test_only_regular_files_are_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "pipe":
        os.mkfifo(file)
    elif name == "null":
        file.symlink_to("/dev/zero")
    elif name == "directory":
        file.mkdir()
    message = {"pipe": "found a pipe", "null": "found a device", "directory": "found a directory"}.get(name)
    for load in (Recipe.load, SearchConfig.load, import_file):
        with pytest.raises(InputError, match=message or "no such file|too long"):
            load(file)


def test_an_error_forges_no_line_and_no_escape() -> None:
    name = "\x1b[2J\x1b[1;1Hx\nevil/x: equal\r\u202ed\u2028e\x9bf"
    errors = [
        RunError(f"{name} is missing"),
        RecipeError(f"{name} is missing"),
        ConfigError(Problem((name,), f"found {name}"), file=name),
        RecipeError([Problem(("a", name), "x"), Problem(("b",), name)]),
    ]
    for error, lines in zip(errors, (1, 1, 1, 2), strict=True):
        assert len(str(error).split("\n")) == lines
        assert all(character.isprintable() for character in str(error).replace("\n", ""))
        assert r"\x1b[2J\x1b[1;1Hx evil/x: equal \u202ed" in str(error)
