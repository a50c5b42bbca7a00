"""Mutated files of every kind that users and strangers write: each command ends with 0, 1 or 2 and a sentence.

    GPTAILOR_FUZZ_CASES=20000 GPTAILOR_FUZZ_SEED=7 pytest tests/test_boundary_fuzz.py

is a long run by hand; a failure names the case, and writes what it was made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gptailor_merge.cli import app as cli
from tests.conftest import MakeFamily, recipe_of
from tests.mutations import mutated_bytes, mutated_document, mutated_header

CASES = int(os.environ.get("GPTAILOR_FUZZ_CASES", "170"))
SEED = os.environ.get("GPTAILOR_FUZZ_SEED", "0")
SECONDS = 5.0
"""The longest that a command may work."""

RUNS = Path(__file__).parent / "runs" / "data" / "0.1.0"


class TooSlow(BaseException):
    """A command that works for too long; nobody catches it by accident."""


@dataclass(frozen=True)
class Target:
    """A file that is mutated, and the commands that read it.

    Attributes:
        file: where it lies in the inputs.
        commands: their arguments; IN and OUT stand for the directories.
        mutate: changes the file in place.
        share: how often it is tried, compared with the others.
    """

    file: str
    commands: tuple[str, ...]
    mutate: Callable[[Path, random.Random], None]
    share: int = 1


def mutate_text(file: Path, rng: random.Random) -> None:
    """Changes a document's values, or its bytes."""
    if rng.random() < 0.8:
        mutated_document(file, rng)
    else:
        mutated_bytes(file, rng)


def mutate_journal(file: Path, rng: random.Random) -> None:
    """Changes a cell, a table or bytes of a database."""
    if rng.random() < 0.3:
        mutated_bytes(file, rng)
        return
    try:
        mutate_table(file, rng)
    except (
        sqlite3.DatabaseError,
        UnicodeDecodeError,
    ):  # an earlier change left no database, or a constraint keeps the cell
        mutated_bytes(file, rng)


def mutate_table(file: Path, rng: random.Random) -> None:
    """Changes a cell in all rows of a table, or the table."""
    odd = rng.choice(
        [None, "", "{", "[]", "{}", "nonsense", -1, 10**15, 1e308, b"\xff\xfe", "\x1b[2J", "null"]
    )
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if not tables:
            raise sqlite3.DatabaseError("an earlier change left no table")
        table = rng.choice(tables)
        column = rng.choice([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
        change = rng.choice(
            [f"UPDATE {table} SET {column} = ?"] * 4
            + [
                f"DELETE FROM {table}",
                f"DROP TABLE {table}",
                f"ALTER TABLE {table} RENAME COLUMN {column} TO odd",
            ]
        )
        database.execute(change, (odd,) if "?" in change else ())


LINT = "recipe lint IN/recipe.yml"
MERGE = "merge IN/recipe.yml OUT"
TARGETS = (
    Target("recipe.yml", (LINT, "recipe show IN/recipe.yml", LINT, MERGE), mutate_text, 4),
    Target(
        "recipe.yml",
        ("recipe import IN/recipe.yml --out OUT", "recipe diff IN/recipe.yml IN/other.yml"),
        mutate_text,
    ),
    Target("plain.yml", ("recipe import IN/plain.yml --out OUT",), mutate_text),
    Target("search.yml", ("evolve IN/search.yml --out OUT --budget 4",), mutate_text, 3),
    Target("base/config.json", (LINT, LINT, LINT, "check IN/base"), mutate_text, 3),
    Target("base/model.safetensors", (LINT, LINT, "check IN/base", MERGE), mutated_header, 3),
    Target(
        "shards/model.safetensors.index.json",
        ("recipe lint IN/shards.yml", "check IN/shards"),
        mutate_text,
        2,
    ),
    Target(
        "base/tokenizer_config.json", ("score IN/base --data IN/texts.jsonl", "check IN/base"), mutate_text
    ),
    Target("base/tokenizer.json", ("score IN/base --data IN/texts.jsonl", "check IN/base"), mutate_text),
    Target("texts.jsonl", ("score IN/base --data IN/texts.jsonl",), mutate_text, 2),
    Target("run/journal.db", ("show IN/run --json", "show IN/run", "report IN/run"), mutate_journal, 4),
    Target("run/config.yml", ("show IN/run --json", "show IN/run", "report IN/run"), mutate_text, 2),
    Target("run/gptailor_run.json", ("show IN/run", "check IN/run"), mutate_text),
    Target("front/journal.db", ("show IN/front --pareto", "show IN/front --pick knee"), mutate_journal),
)


@pytest.fixture(scope="module")
def inputs(make_family: MakeFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files of every kind."""
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("sound")
    family = make_family(depth=5)
    names = {name: str(shutil.copytree(path, root / name)) for name, path in family.items()}
    shutil.copytree(names["base"], root / "shards")
    (root / "shards" / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(names["base"]).save_pretrained(root / "shards", max_shard_size="4KB")
    # Names are relative to the working directory, so that copies of the inputs are whole.
    relative = {name: f"./{name}" for name in names}
    (root / "recipe.yml").write_text(yaml.safe_dump(recipe_of(relative), sort_keys=False))
    (root / "other.yml").write_text(yaml.safe_dump(recipe_of(relative, dtype="bfloat16"), sort_keys=False))
    shards = {**relative, "base": "./shards"}
    (root / "shards.yml").write_text(yaml.safe_dump(recipe_of(shards), sort_keys=False))
    plain = {
        "merge_method": "passthrough",
        "dtype": "bfloat16",
        "slices": [
            {"sources": [{"model": relative[n], "layer_range": [i, i + 2]}]}
            for n, i in (("base", 0), ("math", 3))
        ],
    }
    (root / "plain.yml").write_text(yaml.safe_dump(plain, sort_keys=False))
    (root / "texts.jsonl").write_text('{"text": "ONCE UPON A TIME"}\n{"text": "1+2=3"}\n')
    objective = {"kind": "kl", "data": {"a": "texts.jsonl"}, "tokens": 16, "sequence_length": 8}
    search = {
        "family": {"base": "base", "variants": {"math": "math", "code": "code"}},
        "target": {"layers": 3},
        "tune": {"steps": 0},
        "writes": {"tokens": 0},
        "objectives": [objective],
        "operations": {"merge": ["slerp"], "protect": {"first": 1, "last": 1}},
        "search": {
            "budget": 0,
            "population": 2,
            "warm_start": [],
        },  # no sound search: they are tested elsewhere
        "repair": {"finalists": 0},
    }
    (root / "search.yml").write_text(yaml.safe_dump(search, sort_keys=False))
    shutil.copytree(RUNS / "search", root / "run")
    shutil.copytree(RUNS / "front", root / "front")
    return root


def state(directory: Path) -> dict[str, str]:
    """Every file in a directory, with a digest of what it holds."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises TooSlow where the block works too long; a busy machine does not matter."""

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Runs a command in this process and returns its exit code and what it printed."""
    is_search = arguments[0] == "evolve"
    monkeypatch.setattr(sys, "argv", ["gptailor", *arguments[is_search:]])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), limited():
        try:
            (cli.evolve_main if is_search else cli.main)()
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue()
    return 0, printed.getvalue()


def fault_of(target: Target, command: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Runs a command on mutated inputs and returns what it does wrong."""
    inputs, out = root / "in", root / "out"
    arguments = [word.replace("IN", str(inputs)).replace("OUT", str(out)) for word in command.split()]
    before = state(inputs)
    try:
        code, printed = run_command(arguments, monkeypatch)
    except (Exception, TooSlow) as error:
        last = "".join(traceback.format_exception(error)[-3:])
        return f"{type(error).__name__}: {error}"[:300] + "\n" + last[-1500:]
    if code not in (0, 1, 2) or (code and not printed.strip()):
        return f"exit code {code}: {printed!r}"
    if "Traceback" in printed or "\x1b[2J" in printed:
        return f"prints {printed!r}"
    after = {file: digest for file, digest in state(inputs).items() if not file.endswith("report.html")}
    if after != {file: digest for file, digest in before.items() if file in after} or len(after) < len(
        before
    ):
        return f"changes its inputs: {sorted(set(after) ^ set(before)) or 'their content'}"
    left = sorted(file.name for file in root.iterdir() if file.name != "in")
    if left not in ([], ["out"]) or (left and code and target.file != "search.yml"):
        return f"exit code {code} and leaves {left}: {printed[-300:]}"
    return None


@pytest.mark.parametrize(
    "target", TARGETS, ids=[f"{target.file} by {target.commands[0]}" for target in TARGETS]
)
def test_no_mutation_breaks_a_command(
    target: Target, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    faults = []
    cases = max(1, CASES * target.share // sum(other.share for other in TARGETS))
    for number in range(cases):
        rng = random.Random(f"{SEED}/{target.file}/{number}")
        command = target.commands[number % len(target.commands)]
        root = tmp_path / str(number)
        shutil.copytree(inputs, root / "in")
        for _ in range(rng.choice([1, 1, 2])):
            target.mutate(root / "in" / target.file, rng)
        monkeypatch.chdir(root / "in")
        fault = fault_of(target, command, root, monkeypatch)
        monkeypatch.chdir(tmp_path)
        if fault is not None:
            faults.append(f"case {number} of seed {SEED}, {command} in {root}/in: {fault}")
        else:
            shutil.rmtree(root)
    assert not faults, f"{len(faults)} of {cases}\n\n" + "\n\n".join(faults[:20])
