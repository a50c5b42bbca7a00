"""The journal: an SQLite file with every candidate of a run and what became of it.

The candidates of a generation are written in one transaction when it is finished, so that a killed run
loses no more than the generation it was working on. There is no other state: a resumed search asks its
optimiser again from the seed and takes the answers from the journal (see search/driver.py).
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptailor_merge.errors import InputError, SearchError
from gptailor_merge.objectives.scores import Scores
from gptailor_merge.runs.metadata import Metadata
from gptailor_merge.runs.stored_scores import dump_scores, load_scores
from gptailor_merge.scoring.measures import Items
from gptailor_merge.search.candidates import REFINED, Candidate, Counts, Status

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


_REFINED = """
CREATE TABLE IF NOT EXISTS {table} (
    original TEXT PRIMARY KEY,   -- digest of the candidate that was refined
    number INTEGER NOT NULL REFERENCES candidates (number),  -- its number
    digest TEXT NOT NULL,        -- this and the other columns describe the refined recipe
    recipe TEXT NOT NULL,
    loss REAL,                   -- NULL if it was of no use, it failed, or it was kept out
    scores TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    cause TEXT,
    tokens INTEGER NOT NULL,     -- the tokens that went through models, or parts of them, for it
    seconds REAL NOT NULL
) STRICT
"""


_REFINED_IN = {Status.REPAIRED: "repairs", Status.TUNED: "tunings", Status.HEALED: "healings"}
"""The table that holds what became of refined candidates, by the way in which they were refined."""


_SPENT = " UNION ALL ".join(f"SELECT tokens, seconds FROM {table}" for table in _REFINED_IN.values())
"""The query for what each refined candidate took."""


class Journal:
    """The journal of one run. Use it as a context manager, or `close` it.

    Every method raises a SearchError where the file cannot be read or written, or holds something else.

    Args:
        original: a journal that is copied into the file; messages then name it.

    Raises:
        SearchError: the file is not a journal, has another format, or is in use.
    """

    def __init__(self, file: Path | str, *, original: Path | None = None) -> None:
        self.file = Path(file) if original is None else original
        with self._explained("used"):
            self._db = sqlite3.connect(file, timeout=1.0, isolation_level=None)
        try:
            with self._explained("used"):
                if original is not None:
                    # Not read-only, since SQLite has to roll back what a killed search left half written.
                    source = sqlite3.connect(f"{original.resolve().as_uri()}?mode=rw", uri=True)
                    with closing(source):
                        source.backup(self._db)
                self._create()
                written = self._rows().get("format")
                if written == str(FORMAT):  # journals of runs before there was this stage lack its table
                    for status in (Status.TUNED, Status.HEALED):
                        self._db.execute(_REFINED.format(table=_REFINED_IN[status]))
            if written != str(FORMAT):
                raise SearchError(
                    f"{self.file}: a journal of format {written}; this version reads format {FORMAT}"
                )
        except BaseException:
            self._db.close()
            raise

    def _create(self) -> None:
        with self._transaction():
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables:
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
                self._db.execute(_REFINED.format(table=_REFINED_IN[Status.REPAIRED]))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Writes all that the block writes, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # on a full disk SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turns what SQLite and the readers of its rows say into a sentence about the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise SearchError(f"{self.file}: cannot be {verb} as a journal: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            text = " ".join(str(error).split())[:200]
            raise SearchError(
                f"{self.file}: cannot be {verb} as a journal: it holds what no search writes ({text})"
            ) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def metadata(self) -> Metadata:
        """Returns the facts about the run as a whole."""
        with self._explained("read"):
            return Metadata.from_rows(self._rows())

    def describe(self, metadata: Metadata) -> None:
        """Writes the facts about the run as a whole; None leaves what is stored."""
        with self._explained("written"), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", metadata.to_rows().items())

    def _rows(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def record(self, candidates: Sequence[Candidate]) -> None:
        """Writes finished candidates, either all or none."""
        rows = [
            (
                *(c.number, c.digest, c.recipe, c.status, c.loss, dump_scores(c.scores), c.fingerprint),
                *(c.cause, c.original, c.tokens, c.seconds),
            )
            for c in candidates
        ]
        with self._explained("written"), self._transaction():
            self._db.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def candidates(self) -> Iterator[Candidate]:
        """Yields every candidate in the order of proposal."""
        yield from self._read("SELECT * FROM candidates ORDER BY number")

    def candidate(self, number: int) -> Candidate | None:
        """Returns the candidate of a number; None where there is none."""
        return next(self._read("SELECT * FROM candidates WHERE number = ?", number), None)

    def finished(self) -> Iterator[Candidate]:
        """Yields the candidates of a target size that were scored on everything, then refined ones.

        Each come in the order in which they were proposed or refined.
        """
        yield from self._read(
            # A probe that happens to have a target size counts through its duplicate.
            "SELECT * FROM candidates AS c WHERE status = 'scored' OR (status = 'duplicate' AND "
            "(SELECT status FROM candidates WHERE number = c.original) = 'probe' AND loss IS NOT NULL) "
            "ORDER BY number"
        )
        for status in REFINED:
            yield from (candidate for _, candidate in self._refined(status) if candidate.loss is not None)

    def _read(self, query: str, *values: int) -> Iterator[Candidate]:
        with self._explained("read"):
            for row in self._db.execute(query, values):
                number, digest, recipe, status, *rest = row
                yield self._candidate(number, digest, recipe, Status(status), *rest)

    def _candidate(
        self,
        number: int,
        digest: str,
        recipe: str,
        status: Status,
        loss: float | None,
        scores: str,
        *rest: Any,
    ) -> Candidate:
        if not (
            isinstance(digest, str) and isinstance(recipe, str) and isinstance(loss, (float, type(None)))
        ):
            raise TypeError(f"candidate {number}")
        candidate = Candidate(number, digest, recipe, status, loss, load_scores(scores), *rest)
        return replace(candidate, directory=self.file.parent)

    def record_repair(self, original: str, repaired: Candidate) -> None:
        """Writes what became of a candidate's repair, replacing an older one.

        Args:
            original: digest of the candidate.
            repaired: the repaired candidate, which has no loss if the repair is of no use.
        """
        self._record_refined(Status.REPAIRED, original, repaired)

    def record_tuning(self, original: str, tuned: Candidate) -> None:
        """Writes what became of a candidate's tuning, replacing an older one; see `record_repair`."""
        self._record_refined(Status.TUNED, original, tuned)

    def record_healing(self, original: str, healed: Candidate) -> None:
        """Writes what became of a candidate's healing, replacing an older one; see `record_repair`."""
        self._record_refined(Status.HEALED, original, healed)

    def _record_refined(self, status: Status, original: str, refined: Candidate) -> None:
        c = refined
        row = (original, c.number, c.digest, c.recipe, c.loss, dump_scores(c.scores), c.fingerprint, c.cause)
        with self._explained("written"):
            self._db.execute(
                f"INSERT OR REPLACE INTO {_REFINED_IN[status]} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, c.tokens, c.seconds),
            )

    def repairs(self) -> dict[str, Candidate]:
        """Returns digest of a candidate -> what became of its repair, in the order of the repairs."""
        return dict(self._refined(Status.REPAIRED))

    def tunings(self) -> dict[str, Candidate]:
        """Returns digest of a candidate -> what became of its tuning, in the order of the tunings."""
        return dict(self._refined(Status.TUNED))

    def healings(self) -> dict[str, Candidate]:
        """Returns key of a healing -> what became of it, see healing.finalists, in their order."""
        return dict(self._refined(Status.HEALED))

    def _refined(self, status: Status) -> Iterator[tuple[str, Candidate]]:
        query = (
            "SELECT original, number, digest, recipe, loss, scores, fingerprint, cause, tokens, seconds "
            f"FROM {_REFINED_IN[status]} ORDER BY rowid"
        )
        with self._explained("read"):
            for row in self._db.execute(query):
                original, number, digest, recipe, loss, scores, fingerprint, cause, *spent = row
                refined = (number, digest, recipe, status, loss, scores, fingerprint, cause, None)
                yield original, self._candidate(*refined, *spent)

    def best(self) -> Candidate | None:
        """Returns the first finished candidate with the lowest loss; None if nothing is finished."""
        return min(self.finished(), key=lambda c: math.inf if c.loss is None else c.loss, default=None)

    def counts(self) -> Counts:
        """Returns totals over all candidates."""
        query = (
            "SELECT count(*), coalesce(sum(status = 'failed'), 0), "
            "coalesce(sum(status = 'duplicate'), 0), coalesce(sum(status = 'dropped'), 0), "
            "coalesce(sum(status = 'gated'), 0), "
            "(SELECT count(DISTINCT number) FROM repairs WHERE loss IS NOT NULL), "
            "(SELECT count(*) FROM tunings WHERE loss IS NOT NULL), "
            "(SELECT count(DISTINCT number) FROM healings WHERE loss IS NOT NULL), "
            f"coalesce(sum(tokens), 0) + (SELECT coalesce(sum(tokens), 0) FROM ({_SPENT})), "
            f"coalesce(sum(seconds), 0.0) + (SELECT coalesce(sum(seconds), 0.0) FROM ({_SPENT})) "
            "FROM candidates"
        )
        with self._explained("read"):
            return Counts(*self._db.execute(query).fetchone())

    def record_items(self, items: Iterable[Items]) -> None:
        """Writes which items of tasks are scored, replacing what was there."""
        rows = [(i.section, i.objective, i.task, i.split, json.dumps(i.ids)) for i in items]
        with self._explained("written"), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", rows)

    def items(self) -> list[Items]:
        """Returns which items of tasks are scored."""
        with self._explained("read"):
            rows = self._db.execute("SELECT * FROM items ORDER BY rowid")
            return [
                Items(section, objective, task, split, tuple(json.loads(ids)))
                for section, objective, task, split, ids in rows
            ]

    def record_held_out(self, model: str, scores: Scores) -> None:
        """Writes the held-out scores of a model, replacing older ones."""
        with self._explained("written"):
            self._db.execute("INSERT OR REPLACE INTO held_out VALUES (?, ?)", (model, dump_scores(scores)))

    def keep_held_out(self, models: Collection[str]) -> None:
        """Deletes the held-out scores of all models but these."""
        stale = [(model,) for model in self.held_out() if model not in models]
        with self._explained("written"), self._transaction():
            self._db.executemany("DELETE FROM held_out WHERE model = ?", stale)

    def held_out(self) -> dict[str, Scores]:
        """Returns model -> its held-out scores, in the order in which models were first scored."""
        with self._explained("read"):
            rows = self._db.execute("SELECT model, scores FROM held_out ORDER BY rowid")
            return {model: load_scores(scores) for model, scores in rows}


def snapshot(file: Path) -> Journal:
    """Copies a journal, which a search may be writing, into memory.

    The file is locked only while it is copied, so that the search need not wait.

    Raises:
        InputError: there is no such file.
        SearchError: the file is not a journal, or has another format.
    """
    if not file.is_file():
        raise InputError("no such journal; expected a run directory of gptailor-evolve", file=file)
    return Journal(":memory:", original=file)
