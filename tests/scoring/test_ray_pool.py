"""Actors of Ray: they keep the contract, a run's journal is that of one process, and killing changes nothing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.executor_pools import PoolFactory
from gptailor_merge.scoring.ray_pool import LISTENS_OUTSIDE, REPORTS_USAGE, RayCluster, RayPool
from gptailor_merge.scoring.workplace import Job, Workplace
from gptailor_merge.testing.executors import ExecutorContract, tiny_job
from tests.scoring.forked_workers import forked_workers

ray = pytest.importorskip("ray")

CPU = torch.device("cpu")

KILLS, DRIVERS_KILLED = 20, 6

ACTOR = "ray::RayWorker"


@pytest.fixture(scope="module")
def forks() -> Iterator[None]:
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory() as directory, forked_workers(Path(directory)):
        yield


@pytest.fixture(scope="module")
def here(forks: None) -> Iterator[Any]:
    """Ray for this process, with room for the workers of several tests."""
    cluster = RayCluster(Job({}, "cpu", workers=6), b"")
    yield psutil.Process().children(recursive=True)
    cluster.close()


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

    def test_the_journal_is_the_same_for_any_number_of_workers(
        self, config: SearchConfig, tmp_path: Path
    ) -> None:
        # YAML breaks lines by their length, so all directories have names of one length.
        runs = [(workers, Run(tmp_path / f"run-{workers or 0}")) for workers in (None, 1, 3)]
        for workers, run in runs:
            run_with(config.document(), workers, run)
        alone, *others = [contents(run) for _, run in runs]
        assert others == [alone, alone]


def test_what_cannot_be_sent_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tiny_job(tmp_path)
    workplace = job.open()
    (objective,) = workplace.measures.searched.objectives
    monkeypatch.setattr(workplace.measures.searched, "objectives", [objective, lambda: None])
    with pytest.raises(ConfigError, match=r"what is measured cannot be sent to workers: .*lambda"):
        RayPool(job, workplace)


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


@pytest.fixture
def config(tmp_path: Path) -> SearchConfig:
    tiny = SearchConfig.model_validate(tiny_job(tmp_path).config)
    update = {
        "search": tiny.search.model_copy(update={"budget": 16, "population": 8, "racing": True}),
        "tune": tiny.tune.model_copy(update={"finalists": 0}),
    }
    return tiny.model_copy(update=update)


def run_with(document: Any, workers: int | None, run: Run, address: str | None = None) -> None:
    """Runs a search, or goes on with it."""
    config = SearchConfig.model_validate(document).override(workers=workers)
    execute(config, run, CPU, resume=True, address=address)


def contents(run: Run) -> tuple[str, Any]:
    """What a run has come to, but for its seconds and the names of its directory."""
    with Journal(run.journal) as journal:
        rows = [replace(c, seconds=0.0) for c in (*journal.candidates(), *journal.repairs().values())]
        return repr(rows).replace(str(run.path), ""), journal.held_out()


@pytest.fixture
def two_machines(forks: None) -> Iterator[Any]:
    """A cluster of two machines with one core each, as far as Ray can tell; and the second of them."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster, cluster.add_node(num_cpus=1)
    cluster.shutdown()


def await_workers(driver: Any) -> list[psutil.Process]:
    """Waits for a worker of a run that goes on, and returns the processes of all."""
    for _ in range(1000):
        assert driver.exitcode is None, "the search ended before it was disturbed often enough"
        # Ray names the process of an actor as soon as it has one.
        alive = [p for p in psutil.process_iter(["cmdline"]) if ACTOR in "".join(p.info["cmdline"] or ())]
        if alive:
            return alive
        time.sleep(0.05)
    raise AssertionError("no worker has started")


def test_killed_workers_and_drivers_and_a_machine_that_leaves_change_nothing(
    config: SearchConfig, two_machines: Any, tmp_path: Path
) -> None:
    """Twenty kills at random instants, of either; then a machine leaves, and another one joins."""
    cluster, second = two_machines
    search = config.search.model_copy(update={"budget": 128})
    document = config.model_copy(update={"search": search}).document()
    undisturbed, disturbed = Run(tmp_path / "undisturbed-0"), Run(tmp_path / "disturbed-000")
    run_with(document, None, undisturbed)
    # Children of a server that has imported everything: a fresh interpreter would import for seconds.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    rng = random.Random(0)
    victims = ["worker"] * (KILLS - DRIVERS_KILLED) + ["driver"] * DRIVERS_KILLED
    rng.shuffle(victims)

    def begin() -> Any:
        child = server.Process(target=run_with, args=(document, 2, disturbed, cluster.address))
        child.start()
        return child

    driver = begin()
    while victims:
        alive = await_workers(driver)
        time.sleep(rng.uniform(0.0, 0.2))
        if victims[-1] == "driver":
            os.kill(driver.pid, signal.SIGKILL)
            driver.join()
            driver = begin()
        else:
            try:
                rng.choice(alive).kill()
            except psutil.NoSuchProcess:
                continue  # it has ended with its driver
        victims.pop()
    # One machine leaves with its worker, and another one joins.
    await_workers(driver)
    cluster.remove_node(second)
    cluster.add_node(num_cpus=1)
    driver.join(timeout=300)
    assert driver.exitcode == 0
    assert contents(disturbed) == contents(undisturbed)
