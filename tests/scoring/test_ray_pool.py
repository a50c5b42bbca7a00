"""Actors of Ray: they keep the contract, and a run's journal is that of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gptailor_merge.composing.editing import GAINS_FILE
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.executor_pools import PoolFactory
from gptailor_merge.scoring.ray_pool import LISTENS_OUTSIDE, REPORTS_USAGE, RayCluster, RayPool
from gptailor_merge.scoring.workplace import Job, Workplace
from gptailor_merge.testing.executors import ExecutorContract, tiny_job

ray = pytest.importorskip("ray")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def here(forks: None) -> Iterator[Any]:
    """Ray for this process, with room for the workers of several tests."""
    cluster = RayCluster(Job({}, "cpu", workers=6), b"")
    yield psutil.Process().children(recursive=True)
    cluster.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://localhost:10001", "--ray-address: expected HOST:PORT or auto, found 'ray://localhost:10001'"),
        ("no address", "Ray cannot be reached at no address: "),
    ],
)
def test_an_address_that_cannot_be_joined_is_a_sentence(address: str, message: str, tmp_path: Path) -> None:
    job = replace(tiny_job(tmp_path), address=address)
    with pytest.raises(ConfigError) as error:
        RayPool(job, job.open())
    assert str(error.value).startswith(message)


@pytest.mark.usefixtures("here")
class TestRay(ExecutorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def make_pool(cls) -> PoolFactory:
        def pool(job: Job, workplace: Workplace) -> RayPool:
            return RayPool(replace(job, workers=2), workplace)

        return pool

    def test_it_listens_on_the_loopback_address_alone(self, here: list[psutil.Process]) -> None:
        """Nothing that was started for this process can be reached from outside, and nothing is reported."""
        assert (os.environ[REPORTS_USAGE], os.environ[LISTENS_OUTSIDE]) == ("0", "0")
        started = {process.pid for process in here}
        listening = [
            connection.laddr.ip.removeprefix("::ffff:")
            for connection in psutil.net_connections("tcp")
            if connection.pid in started and connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}

    def test_journal_maps_and_gains_are_the_same_for_any_number_of_workers(
        self, tiny_search: SearchConfig, tmp_path: Path
    ) -> None:
        """Three finalists are repaired and two are tuned, each by a worker."""
        document = tiny_search.document() | {"tune": {"finalists": 2, "steps": 2, "tokens": 256}}
        document["search"] = {**document["search"], "warm_start": []}  # block influence loads the family
        # YAML breaks lines by their length, so all directories have names of one length.
        runs = {workers: Run(tmp_path / f"run-{workers or 0}") for workers in (None, 1, 3)}
        told: dict[int | None, list[str]] = {workers: [] for workers in runs}
        for workers, run in runs.items():
            run_with(document, workers, run, on_step=told[workers].append)
        alone, *others = [(contents(run), files(run)) for run in runs.values()]
        assert others == [alone, alone]
        assert ["loading the family" in steps for steps in told.values()] == [True, False, False]
        assert {Path(name).name for name in alone[1]} == {"best.yml", "repair-2.safetensors", GAINS_FILE}


def test_what_cannot_be_sent_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tiny_job(tmp_path)
    workplace = job.open()
    (objective,) = workplace.measures.searched.objectives
    monkeypatch.setattr(workplace.measures.searched, "objectives", [objective, lambda: None])
    with pytest.raises(ConfigError, match=r"what is measured cannot be sent to workers: .*lambda"):
        RayPool(job, workplace)


def run_with(document: Any, workers: int | None, run: Run, **options: Any) -> None:
    """Runs a search, or goes on with it."""
    config = SearchConfig.model_validate(document).override(workers=workers)
    execute(config, run, CPU, resume=True, **options)


def contents(run: Run) -> tuple[str, Any]:
    """What a run has come to, but for its seconds and the names of its directory."""
    with Journal(run.journal) as journal:
        refined = (*journal.repairs().values(), *journal.tunings().values())
        rows = [replace(c, seconds=0.0) for c in (*journal.candidates(), *refined)]
        return repr(rows).replace(str(run.path), ""), journal.held_out()


def files(run: Run) -> dict[str, bytes]:
    """The best recipe, and all maps and gains."""
    names = [run.best, *(file for file in run.repairs.rglob("*") if file.is_file())]
    return {str(file.relative_to(run.path)): file.read_bytes() for file in names}
