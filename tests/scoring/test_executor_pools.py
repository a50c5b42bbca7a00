"""Executors: the one of this process, and one that another package offers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptailor_merge import extensions
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.executor import Executor
from gptailor_merge.scoring.executor_pools import EXECUTORS, LOCAL, LocalPool, Pool, PoolFactory
from gptailor_merge.scoring.racing import Race
from gptailor_merge.scoring.workplace import Job, Workplace
from gptailor_merge.testing.executors import WEIGHTS, ExecutorContract, tiny_job, tiny_plans
from tests.packages import install

ROOT = Path(__file__).parents[2]

TWO_PROCESSES = '''
"""An executor with one worker in a second process; plans and outcomes cross as bytes."""

import multiprocessing
import os
import pickle


def serve(connection):
    workplace = pickle.loads(connection.recv_bytes()).open()
    connection.send_bytes(pickle.dumps(os.getpid()))
    evaluators = {}
    while (message := connection.recv_bytes()) != b"":
        section, plans, race = pickle.loads(message)
        if section not in evaluators:
            evaluators[section] = workplace.evaluator(section)
        connection.send_bytes(pickle.dumps(evaluators[section].score(plans, race)))


class TwoProcesses:
    def __init__(self, job, workplace):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        self.connection.send_bytes(pickle.dumps(job))
        assert pickle.loads(self.connection.recv_bytes()) != os.getpid()

    def executor(self, section):
        return Remote(self.connection, section)

    def close(self):
        self.connection.send_bytes(b"")
        self.process.join()


class Remote:
    def __init__(self, connection, section):
        self.connection, self.section = connection, section

    def score(self, plans, race=None):
        self.connection.send_bytes(pickle.dumps((self.section, list(plans), race)))
        return pickle.loads(self.connection.recv_bytes())
'''


class TestLocal(ExecutorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make_pool(cls) -> PoolFactory:
        return LocalPool

    def test_a_race_drops_some(self, executor: Executor, plans: list[Plan]) -> None:
        outcomes = executor.score(plans, Race(1, WEIGHTS, certainty=1.0))
        assert 0 < sum(outcome.estimate is not None for outcome in outcomes) < len(plans)


def test_a_job_holds_plain_data_that_opens_as_the_same_config(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    copy = pickle.loads(pickle.dumps(job))
    assert copy == job
    config = SearchConfig.model_validate(job.config)
    assert Job.of(config, torch.device("cpu")) == job
    ours, theirs = job.open().measures, copy.open().measures
    for section in ("searched", "gates", "held_out"):
        fingerprints = [
            [objective.fingerprint for objective in getattr(measures, section).objectives]
            for measures in (ours, theirs)
        ]
        assert fingerprints[0] == fingerprints[1]


def test_the_family_is_loaded_only_where_it_is_needed(tmp_path: Path) -> None:
    """Where plans are scored elsewhere, this process holds no weights until something is repaired."""
    steps: list[str] = []
    workplace = tiny_job(tmp_path).open(steps.append)
    hidden = workplace.hidden
    assert workplace.base_measured
    assert steps == ["building the calibration set"]
    hidden.block_influence(tiny_plans(Job.of(workplace.config, workplace.device))[0])
    assert steps == ["building the calibration set", "loading the family"]


def offer(site: Path, entry_point: str, module: str = TWO_PROCESSES) -> Path:
    """Writes a package as pip would install it, with an entry point; returns its directory."""
    entry_points = f"[gptailor_merge.executors]\n{entry_point}\n"
    return install(site, "two-processes", entry_points, {"two_processes": module})


def test_an_unknown_executor_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = SearchConfig.model_validate(tiny_job(tmp_path).config)
    run = Run(tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown executor, found 'lokal'; did you mean 'local'"):
        execute(config, run, torch.device("cpu"), executor="lokal")
    assert not run.path.exists()


@pytest.mark.parametrize("module", ["1 / 0", "Other = 3"])
def test_an_executor_that_cannot_be_imported_is_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(offer(tmp_path / "site", "two = two_processes:TwoProcesses", module))
    monkeypatch.delitem(sys.modules, "two_processes", raising=False)
    extensions._entry_points.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"executor 'two' .* two_processes:TwoProcesses: \w+Error"):
            EXECUTORS["two"]
        assert EXECUTORS[LOCAL] is LocalPool
    finally:
        extensions._entry_points.cache_clear()


class InterruptionError(Exception):
    """Ends a run."""


def test_a_pool_is_closed_also_when_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Failing:
        def __init__(self, job: Job, workplace: Workplace) -> None: ...

        def executor(self, section: str) -> Executor:
            return self

        def score(self, plans: object, race: object = None) -> list[object]:
            raise InterruptionError

        def close(self) -> None:
            closed.append(True)

    pool: type[Pool] = Failing
    monkeypatch.setitem(EXECUTORS._built_in, "failing", pool)  # type: ignore[attr-defined]
    config = SearchConfig.model_validate(tiny_job(tmp_path).config)
    with pytest.raises(InterruptionError):
        execute(config, Run(tmp_path / "run"), torch.device("cpu"), executor="failing")
    assert closed == [True]


def test_another_package_scores_in_a_second_process_and_the_journal_is_the_same(tmp_path: Path) -> None:
    """Nothing but the installed package is needed: neither an import nor a line in this tree."""
    site = offer(tmp_path / "site", "two = two_processes:TwoProcesses")
    tiny = SearchConfig.model_validate(tiny_job(tmp_path).config)
    search = tiny.search.model_copy(update={"budget": 12, "population": 4, "racing": True})
    tune = tiny.tune.model_copy(update={"finalists": 0})
    config = tiny.model_copy(update={"search": search, "tune": tune})
    (tmp_path / "search.yml").write_text(config.to_yaml())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: sums of several threads may round otherwise
    try:
        execute(config, Run(tmp_path / LOCAL), torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    script = f"""
from pathlib import Path
import torch
from gptailor_merge.config import SearchConfig
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.execution import execute

here = Path({str(tmp_path)!r})
execute(SearchConfig.load(here / "search.yml"), Run(here / "other"), torch.device("cpu"), executor="two")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    journals = []
    for name in (LOCAL, "other"):
        with Journal(Run(tmp_path / name).journal) as journal:
            rows = [replace(c, seconds=0.0) for c in (*journal.candidates(), *journal.repairs().values())]
            journals.append((rows, journal.held_out(), journal.metadata().gaps))
    # The maps of repairs lie in the directory of each run. YAML breaks lines by their length, so both
    # directories have names of five letters.
    assert repr(journals[0]).replace(str(tmp_path / LOCAL), "") == repr(journals[1]).replace(
        str(tmp_path / "other"), ""
    )
    assert len(journals[0][0]) > 12
