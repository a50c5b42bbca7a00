"""A journal that is read while a search writes it."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gptailor_merge.errors import InputError, SearchError
from gptailor_merge.objectives.scores import Score
from gptailor_merge.runs.journal import Journal, snapshot
from gptailor_merge.runs.metadata import Metadata
from gptailor_merge.search.candidates import Candidate


def candidate(number: int, loss: float = 1.0) -> Candidate:
    return Candidate(number, f"{number:016x}", "a: 1\n", "scored", loss, {"kl": {"t": Score(loss, 4)}}, "f")


def test_a_snapshot_holds_what_was_recorded_then(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.record([candidate(0)])
        with snapshot(journal.file) as copy:
            journal.record([candidate(1)])
            assert list(copy.candidates()) == [candidate(0)]
            assert copy.counts().candidates == 1
        assert len(list(journal.candidates())) == 2


def test_a_search_writes_on_while_it_is_read(tmp_path: Path) -> None:
    """Neither an open transaction of the search keeps a reader out, nor an open snapshot the search."""
    file = tmp_path / "journal.db"
    with Journal(file) as journal:
        journal.record([candidate(0)])
    search = sqlite3.connect(file, timeout=0, isolation_level=None)
    search.execute("BEGIN IMMEDIATE")
    search.execute("INSERT OR REPLACE INTO meta VALUES ('axes', '[\"kl\"]')")
    with snapshot(file) as copy:
        assert copy.metadata().axes == ()
        search.execute("COMMIT")  # with no patience at all
        with snapshot(file) as later:
            assert later.metadata().axes == ("kl",)
    search.close()


def test_what_a_killed_search_left_half_written_is_not_seen(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    with Journal(file) as journal:
        journal.record([candidate(0)])
    killed = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1')\n"  # so that pages reach the file before the commit
        "db.execute('BEGIN IMMEDIATE')\n"
        "for n in range(200):\n"
        "    db.execute('INSERT INTO meta VALUES (?, ?)', (str(n), 'x' * 4000))\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(file)], check=False).returncode == 9
    assert file.with_name("journal.db-journal").stat().st_size > 0
    with snapshot(file) as copy:
        assert list(copy.candidates()) == [candidate(0)]
        assert copy.metadata() == Metadata()


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such journal; expected a run directory"):
        snapshot(tmp_path / "journal.db")
    (tmp_path / "journal.db").write_text("not a database, and long enough to be looked at as one")
    with pytest.raises(SearchError, match="journal"):
        snapshot(tmp_path / "journal.db")


def test_a_full_disk_is_said_and_leaves_the_journal_whole(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.record([candidate(0)])
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        many = [replace(candidate(n), recipe="x" * 4000) for n in range(1, 50)]
        for write in (
            lambda: journal.record(many),
            lambda: journal.record_repair("a", replace(candidate(0), recipe="x" * 99_000)),
            lambda: journal.describe(Metadata(warnings=("x" * 99_000,))),
            lambda: journal.record_held_out("base", {"x" * 99_000: {"a": Score(1.0, 1)}}),
        ):
            with pytest.raises(
                SearchError, match=r"journal\.db: cannot be written .*: database or disk is full"
            ):
                write()
        journal._db.execute("PRAGMA max_page_count = 1000000")
        journal.record([candidate(1)])
        assert list(journal.candidates()) == [candidate(0), candidate(1)]


DAMAGES = {
    "UPDATE candidates SET scores = '{'": "candidates",
    "UPDATE candidates SET scores = '[1]'": "candidates",
    "UPDATE candidates SET scores = '{\"kl\": {}}'": "candidates",
    'UPDATE candidates SET scores = \'{"kl": {"a": ["x", 1, "nats"]}}\'': "candidates",
    'UPDATE candidates SET scores = \'{"kl": {"a": [1, 1, "miles"]}}\'': "finished",
    'UPDATE candidates SET scores = \'{"kl": {"a": [1, 1, "nats", null, 5, 6]}}\'': "finished",
    "PRAGMA ignore_check_constraints = 1; UPDATE candidates SET status = 'lost'": "candidates",
    "DROP TABLE repairs": "repairs",
    "DROP TABLE candidates": "counts",
    "INSERT INTO meta VALUES ('axes', '{}')": "metadata",
    "INSERT INTO meta VALUES ('sizes', '{\"base\": [1]}')": "metadata",
    "INSERT INTO meta VALUES ('gaps', '[')": "metadata",
    "INSERT INTO meta VALUES ('history', '[{\"candidates\": \"x\"}]')": "metadata",
    "INSERT INTO held_out VALUES ('base', '7')": "held_out",
    "INSERT INTO items VALUES ('a', 'b', 'c', 'd', '7')": "items",
}


@pytest.mark.parametrize("statement", DAMAGES)
def test_what_no_search_writes_is_said(statement: str, tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    with Journal(file) as journal:
        journal.record([candidate(0)])
        journal._db.executescript(statement)
    message = re.escape(f"{file}: cannot be read as a journal: ")
    with snapshot(file) as copy, pytest.raises(SearchError, match=message):
        for _ in getattr(copy, DAMAGES[statement])():
            pass


def test_a_foreign_database_is_no_journal(tmp_path: Path) -> None:
    file = tmp_path / "journal.db"
    with closing(sqlite3.connect(file)) as foreign:
        foreign.execute("CREATE TABLE cookies (name TEXT)")
    for read in (snapshot, Journal):
        with pytest.raises(
            SearchError, match=re.escape(f"{file}: cannot be used as a journal: no such table: meta")
        ):
            read(file)
    with closing(sqlite3.connect(file)) as foreign:
        assert foreign.execute("SELECT name FROM sqlite_master").fetchall() == [("cookies",)]


def test_standard_errors_are_kept_beside_scores_that_have_them(tmp_path: Path) -> None:
    scores = {"acc": {"a": Score(-0.5, 8, "negated", 0.1), "b": Score(-0.5, 8, "negated")}}
    with Journal(tmp_path / "journal.db") as journal:
        journal.record_held_out("base", scores)
        read = journal.held_out()["base"]
    assert read == scores
    assert [score.error for score in read["acc"].values()] == [0.1, None]
