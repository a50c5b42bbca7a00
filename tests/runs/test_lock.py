"""One process writes a run at a time; its lock ends with it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptailor_merge.api.hub import preview_push
from gptailor_merge.api.models import materialize
from gptailor_merge.api.reports import report
from gptailor_merge.errors import ConfigError
from gptailor_merge.runs.lock import NAME, locked, locked_around
from tests.report.runs import one_recipe, write

HOLD = """
import sys, time
from pathlib import Path
from gptailor_merge.runs.lock import locked
with locked(Path(sys.argv[1]), make=True):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(directory: Path) -> subprocess.Popen[str]:
    """Starts a process that holds the lock on a run."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_another_process_is_named_and_its_lock_dies_with_it(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe())
    with hold(run.path) as child:
        pattern = (
            rf"{re.escape(str(run.path))} is being written by process {child.pid} on \S+ since 20\S+ \S+; "
        )
        with (
            pytest.raises(ConfigError, match=pattern + "choose another"),
            locked(run.path, advice="choose another"),
        ):
            pass
        # Reading is allowed; commands that write into the run are not.
        assert run.summary().loss == 0.3
        with pytest.raises(ConfigError, match=pattern):
            report(run)
        with pytest.raises(ConfigError, match=pattern):
            preview_push(run, "me/model", license="mit")
        with pytest.raises(ConfigError, match=pattern):
            materialize(run.best, run.model)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with locked(run.path):
        assert (run.path / NAME).exists()
    assert not (run.path / NAME).exists()


def test_a_lock_is_held_by_one_caller_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    pattern = f"is being written by process {os.getpid()} on "
    with locked(run, make=True), pytest.raises(ConfigError, match=pattern), locked(run):
        pass
    with locked(run):
        pass


FORK = """
import os, signal, sys
from pathlib import Path
from gptailor_merge.runs.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(1)
        signal.pause()
    print(child, flush=True)
    os._exit(9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_outlives_the_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, tmp_path], stdout=subprocess.PIPE, text=True, check=False
    )
    child = int(done.stdout)
    try:
        os.kill(child, 0)
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"process": "x"}'])
def test_what_a_lock_says_is_not_trusted(text: str, tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(ConfigError, match="is being written by another process; wait"), locked(tmp_path):
            pass


def test_nothing_is_locked_where_there_is_no_run(tmp_path: Path) -> None:
    with locked(tmp_path / "none"), locked_around(tmp_path / "out"), locked_around(tmp_path / "out"):
        assert not list(tmp_path.iterdir())
    run = write(tmp_path / "run", one_recipe())
    with locked_around(run.model), pytest.raises(ConfigError, match="is being written"), locked(run.path):
        pass


def test_a_place_that_cannot_be_locked_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="run cannot be made a directory: Not a directory"),
        locked(tmp_path / "file" / "run", make=True),
    ):
        pass
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(ConfigError, match="cannot be written: Too many levels of symbolic links"),
        locked(tmp_path),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()
