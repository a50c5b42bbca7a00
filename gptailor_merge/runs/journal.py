"""The journal: an SQLite file with every candidate of a run and what became of it.

The candidates of a generation are written in one transaction when it is finished, so that a killed run
loses no more than the generation it was working on. There is no other state: a resumed search asks its
optimiser again from the seed and takes the answers from the journal (see search/driver.py).
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from gptailor_merge.errors import InputError, SearchError
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.runs.metadata import Metadata
from gptailor_merge.scoring.measures import Items
from gptailor_merge.search.candidates import Candidate, Counts, Status

FORMAT = 4


_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE candidates (
    number INTEGER PRIMARY KEY,  -- in the order of proposal, from 0
    digest TEXT NOT NULL,
    recipe TEXT NOT NULL,        -- YAML
    status TEXT NOT NULL CHECK (status IN ('scored', 'dropped', 'gated', 'failed', 'duplicate', 'probe')),
    loss REAL,                   -- NULL if it failed or was kept out, an estimate if it was dropped
    scores TEXT NOT NULL,        -- objective -> set -> [mean, count, unit, and a standard error if known]
    fingerprint TEXT NOT NULL,   -- identifies the objectives
    cause TEXT,                  -- why it failed, or the bound that it breaks
    original INTEGER REFERENCES candidates (number),  -- the candidate that it duplicates
    tokens INTEGER NOT NULL,     -- the tokens that it was scored on
    seconds REAL NOT NULL
) STRICT;
CREATE TABLE repairs (
    original TEXT PRIMARY KEY,   -- digest of the candidate that was repaired
    number INTEGER NOT NULL REFERENCES candidates (number),  -- its number
    digest TEXT NOT NULL,        -- this and the other columns describe the repaired recipe
    recipe TEXT NOT NULL,
    loss REAL,                   -- NULL if no map helped, it failed, or it was kept out
    scores TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    cause TEXT,
    tokens INTEGER NOT NULL,     -- the tokens that went through models, or parts of them, for it
    seconds REAL NOT NULL
) STRICT;
CREATE TABLE items (
    section TEXT NOT NULL,       -- objectives, gates or held_out, as in the config
    objective TEXT NOT NULL,
    task TEXT NOT NULL,
    split TEXT NOT NULL,
    ids TEXT NOT NULL,           -- positions in the split, in the order in which rungs take them
    PRIMARY KEY (section, objective, task)
) STRICT;
CREATE TABLE held_out (model TEXT PRIMARY KEY, scores TEXT NOT NULL) STRICT;
"""


class Journal:
    """The journal of one run. Use it as a context manager, or `close` it.

    Args:
        copy_of: a database that is copied into the file.

    Raises:
        SearchError: the file is not a journal, has another format, or is in use.
    """

    def __init__(self, file: Path, *, copy_of: sqlite3.Connection | None = None) -> None:
        self.file = file
        try:
            self._db = sqlite3.connect(file, timeout=1.0, isolation_level=None)
            if copy_of is not None:
                copy_of.backup(self._db)
            self._create()
        except sqlite3.Error as error:
            raise SearchError(f"{file}: cannot be used as a journal: {error}") from None
        written = self._rows().get("format")
        if written != str(FORMAT):
            raise SearchError(f"{file}: a journal of format {written}; this version reads format {FORMAT}")

    def _create(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables:
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
        self._db.execute("COMMIT")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def metadata(self) -> Metadata:
        """Returns the facts about the run as a whole."""
        return Metadata.from_rows(self._rows())

    def describe(self, metadata: Metadata) -> None:
        """Writes the facts about the run as a whole; None leaves what is stored."""
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", metadata.to_rows().items())

    def _rows(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def record(self, candidates: Sequence[Candidate]) -> None:
        """Writes finished candidates, either all or none."""
        rows = [
            (
                *(c.number, c.digest, c.recipe, c.status, c.loss, _dump(c.scores), c.fingerprint),
                *(c.cause, c.original, c.tokens, c.seconds),
            )
            for c in candidates
        ]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def candidates(self) -> Iterator[Candidate]:
        """Yields every candidate in the order of proposal."""
        for row in self._db.execute("SELECT * FROM candidates ORDER BY number"):
            yield _candidate(row)

    def finished(self) -> Iterator[Candidate]:
        """Yields the candidates of a target size that were scored on everything, then the repaired ones.

        Both come in the order in which they were proposed or repaired.
        """
        rows = self._db.execute(
            # A probe that happens to have a target size counts through its duplicate.
            "SELECT * FROM candidates AS c WHERE status = 'scored' OR (status = 'duplicate' AND "
            "(SELECT status FROM candidates WHERE number = c.original) = 'probe' AND loss IS NOT NULL) "
            "ORDER BY number"
        )
        yield from map(_candidate, rows)
        yield from (candidate for _, candidate in self._repairs() if candidate.loss is not None)

    def record_repair(self, original: str, repaired: Candidate) -> None:
        """Writes what became of a candidate's repair, replacing an older one.

        Args:
            original: digest of the candidate.
            repaired: the repaired candidate, which has no loss if the repair is of no use.
        """
        c = repaired
        row = (original, c.number, c.digest, c.recipe, c.loss, _dump(c.scores), c.fingerprint, c.cause)
        self._db.execute(
            "INSERT OR REPLACE INTO repairs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, c.tokens, c.seconds),
        )

    def repairs(self) -> dict[str, Candidate]:
        """Returns digest of a candidate -> what became of its repair, in the order of the repairs."""
        return dict(self._repairs())

    def _repairs(self) -> Iterator[tuple[str, Candidate]]:
        rows = self._db.execute(
            "SELECT original, number, digest, recipe, loss, scores, fingerprint, cause, tokens, seconds "
            "FROM repairs ORDER BY rowid"
        )
        for original, number, digest, recipe, loss, scores, fingerprint, cause, *spent in rows:
            repaired = (number, digest, recipe, Status.REPAIRED, loss, _load(scores), fingerprint, cause)
            yield original, Candidate(*repaired, None, *spent)

    def best(self) -> Candidate | None:
        """Returns the first finished candidate with the lowest loss; None if nothing is finished."""
        return min(self.finished(), key=lambda c: math.inf if c.loss is None else c.loss, default=None)

    def counts(self) -> Counts:
        """Returns totals over all candidates."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(status = 'failed'), 0), "
            "coalesce(sum(status = 'duplicate'), 0), coalesce(sum(status = 'dropped'), 0), "
            "coalesce(sum(status = 'gated'), 0), "
            "(SELECT count(*) FROM repairs WHERE loss IS NOT NULL), "
            "coalesce(sum(tokens), 0) + (SELECT coalesce(sum(tokens), 0) FROM repairs), "
            "coalesce(sum(seconds), 0.0) + (SELECT coalesce(sum(seconds), 0.0) FROM repairs) FROM candidates"
        ).fetchone()
        return Counts(*row)

    def record_items(self, items: Iterable[Items]) -> None:
        """Writes which items of tasks are scored, replacing what was there."""
        rows = [(i.section, i.objective, i.task, i.split, json.dumps(i.ids)) for i in items]
        self._db.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", rows)

    def items(self) -> list[Items]:
        """Returns which items of tasks are scored."""
        rows = self._db.execute("SELECT * FROM items ORDER BY rowid")
        return [
            Items(section, objective, task, split, tuple(json.loads(ids)))
            for section, objective, task, split, ids in rows
        ]

    def record_held_out(self, model: str, scores: Scores) -> None:
        """Writes the held-out scores of a model, replacing older ones."""
        self._db.execute("INSERT OR REPLACE INTO held_out VALUES (?, ?)", (model, _dump(scores)))

    def keep_held_out(self, models: Collection[str]) -> None:
        """Deletes the held-out scores of all models but these."""
        stale = [(model,) for model in self.held_out() if model not in models]
        self._db.executemany("DELETE FROM held_out WHERE model = ?", stale)

    def held_out(self) -> dict[str, Scores]:
        """Returns model -> its held-out scores, in the order in which models were first scored."""
        rows = self._db.execute("SELECT model, scores FROM held_out ORDER BY rowid")
        return {model: _load(scores) for model, scores in rows}


def snapshot(file: Path) -> Journal:
    """Copies a journal, which a search may be writing, into memory.

    The file is locked only while it is copied, so that the search need not wait.

    Raises:
        InputError: there is no such file.
        SearchError: the file is not a journal, or has another format.
    """
    if not file.is_file():
        raise InputError("no such journal; expected a run directory of gptailor-evolve", file=file)
    try:
        # Not read-only, since SQLite has to roll back what a killed search left half written.
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True)) as source:
            return Journal(Path(":memory:"), copy_of=source)
    except sqlite3.Error as error:
        raise SearchError(f"{file}: cannot be read as a journal: {error}") from None


def _dump(scores: Scores) -> str:
    return json.dumps({o: {n: _written(s) for n, s in by.items()} for o, by in scores.items()})


def _written(score: Score) -> list[Any]:
    return [score.mean, score.count, score.unit, *([] if score.error is None else [score.error])]


def _load(text: str) -> Scores:
    stored: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return {o: {n: Score(*score) for n, score in by.items()} for o, by in stored.items()}


def _candidate(row: tuple[Any, ...]) -> Candidate:
    number, digest, recipe, status, loss, scores, *rest = row
    return Candidate(number, digest, recipe, Status(status), loss, _load(scores), *rest)
