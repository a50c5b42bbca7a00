"""Changes files in the ways in which people and strangers break them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2.5,
    10**9,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "base",
    "./math",
    "/etc/passwd",
    "../../outside",
    "~",
    "a+b+c",
    "org/name@main",
    "\x1b[2J\x1b[H",
    "\ud83d",
    "x" * 10_000,
    "{{ 0 }}",
    "é\u202e",
    [],
    {},
    [[]],
    [0, 1, 2],
    [0, 10**9],
    {"a": 1},
    {"value": [1, 2]},
)
"""Values that no schema expects everywhere."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def mutated(document: Any, rng: random.Random) -> Any:
    """Returns a document in which something is replaced, removed, doubled, renamed or nested."""
    changed = copy.deepcopy(document)
    paths = places(changed)[1:]
    if not paths or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(ODD))
    path = rng.choice(paths)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]

    def put(value: Any) -> None:
        holder[key] = value

    def rename() -> None:
        if isinstance(holder, dict):
            holder[rng.choice([f"{key}s", "", "__class__", "\x1b[2J"])] = holder.pop(key)

    def exchange() -> None:
        other = rng.choice(paths)
        value: Any = changed
        for part in other:
            value = value[part]
        put(copy.deepcopy(value))

    moves: list[Callable[[], Any]] = [
        lambda: put(copy.deepcopy(rng.choice(ODD))),
        lambda: put(copy.deepcopy(rng.choice(ODD))),
        lambda: put(old + rng.choice([-1, 1, 7, -(10**6), 10**6])) if type(old) is int else put([old]),
        lambda: holder.pop(key),
        lambda: holder.insert(key, copy.deepcopy(old)) if isinstance(holder, list) else rename(),
        rename,
        exchange,
    ]
    rng.choice(moves)()
    return changed


def mutated_document(file: Path, rng: random.Random) -> None:
    """Changes a value of a JSON or YAML file, or of a line of a .jsonl."""
    text = file.read_text(errors="replace")
    try:
        if file.suffix == ".jsonl":
            lines = text.splitlines() or ["{}"]
            number = rng.randrange(len(lines))
            lines[number] = json.dumps(mutated(json.loads(lines[number]), rng))
            file.write_text("\n".join(lines) + "\n")
        elif file.suffix == ".json":
            file.write_text(json.dumps(mutated(json.loads(text), rng)))
        else:
            document = mutated(yaml.safe_load(text), rng)
            file.write_text(yaml.dump(document, sort_keys=False), errors="replace")
    except (ValueError, yaml.YAMLError, RecursionError):  # an earlier change left no document
        mutated_bytes(file, rng)


BOMBS = (
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"&a [x, x]: *a",
    b"a: &a [x, x, x, x, x, x, x, x]\n"
    + b"".join(f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 8)}]\n".encode() for c in "bcdefgh"),
    b"!!python/object/apply:os.getcwd []",
    b"a: !!binary x",
    b"- &x [*x]",
    b"? [a, b]\n: c",
    b"a: 1\na: 2",
    b"---\na: 1\n---\nb: 2\n",
    b"2020-99-99",
    b"a: " + b"9" * 5000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b"",
    b"\0",
    b"\xff\xfea\0",
    b"\x1f\x8b",
    b"null",
    b'"text"',
)
"""Whole files that readers of documents do not like."""


def mutated_bytes(file: Path, rng: random.Random) -> None:
    """Cuts a file, changes bytes in it, or puts another in its place."""
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        del content[place:]
    elif kind == 1:
        content[place:place] = rng.choice(
            (b"\xff", b"\0", b"\x1b[2J", b'"', b"{", b"\xef\xbb\xbf", b"\t", b"\n")
        )
    elif kind == 2:
        for _ in range(8):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 3:
        content[:0] = b"\xef\xbb\xbf"
    else:
        content[:] = rng.choice(BOMBS)
    file.write_bytes(content)


def mutated_header(file: Path, rng: random.Random) -> None:
    """Changes the header of a safetensors file, its length, or bytes."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    kind = rng.random()
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        kind = 0.0
    if kind < 0.1:
        mutated_bytes(file, rng)
    elif kind < 0.2:
        length = rng.choice((0, size - 1, size + 9, 2**31, 2**63 - 1, 2**64 - 1))
        file.write_bytes(length.to_bytes(8, "little") + content[8:])
    else:
        written = json.dumps(mutated(header, rng)).encode()
        file.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + size :])
