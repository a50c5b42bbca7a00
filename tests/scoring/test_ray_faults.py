"""Killing workers of Ray and the search itself, at random instants, changes nothing.

This stands before test_ray_pool.py, as Ray that runs for a process and a cluster do not get on in one.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.runs.run import Run
from tests.scoring.test_ray_pool import contents, run_with

pytest.importorskip("ray")

KILLS, DRIVERS_KILLED = 20, 6

ACTOR = "ray::RayWorker"


def run_on(address: str, environment: Mapping[str, str], document: Any, run: Run) -> None:
    """Goes on with a search on a cluster of this machine, in a process that knew nothing of it."""
    os.environ.update(environment)
    importlib.import_module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    run_with(document, 2, run, address=address)


@pytest.fixture
def two_machines(forks: None) -> Iterator[Any]:
    """A cluster of two machines with one core each, as far as Ray can tell; and the second of them."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster, cluster.add_node(num_cpus=1)
    cluster.shutdown()


def workers_of(driver: Any) -> list[psutil.Process]:
    """Waits for a worker of a search that goes on, and returns the processes of all; none if it has ended."""
    for _ in range(1000):
        # Ray names the process of an actor as soon as it has one.
        alive = [p for p in psutil.process_iter(["cmdline"]) if ACTOR in "".join(p.info["cmdline"] or ())]
        if alive or driver.exitcode is not None:
            return alive
        time.sleep(0.05)
    raise AssertionError("no worker has started")


def test_killed_workers_and_drivers_and_a_machine_that_leaves_change_nothing(
    tiny_search: SearchConfig, two_machines: Any, tmp_path: Path
) -> None:
    """Twenty kills at random instants, of either; then a machine leaves, and another one joins."""
    cluster, second = two_machines
    search = tiny_search.search.model_copy(update={"budget": 128})
    document = tiny_search.model_copy(update={"search": search}).document()
    undisturbed, disturbed = Run(tmp_path / "undisturbed-0"), Run(tmp_path / "disturbed-000")
    run_with(document, None, undisturbed)
    # Children of a server that has imported everything: a fresh interpreter would import for seconds.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    of_ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    rng = random.Random(0)
    victims = ["worker"] * (KILLS - DRIVERS_KILLED) + ["driver"] * DRIVERS_KILLED
    rng.shuffle(victims)

    def begin() -> Any:
        child = server.Process(target=run_on, args=(cluster.address, of_ray, document, disturbed))
        child.start()
        return child

    driver = begin()
    while victims:
        alive = workers_of(driver)
        assert driver.exitcode != 0, "the search ended before it was disturbed often enough"
        if (
            driver.exitcode is not None
        ):  # so many workers in a row were killed while they started that it gave up
            driver = begin()
            continue
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
    workers_of(driver)
    cluster.remove_node(second)
    cluster.add_node(num_cpus=1)
    driver.join(timeout=300)
    if driver.exitcode:
        driver = begin()
        driver.join(timeout=300)
    assert driver.exitcode == 0
    assert contents(disturbed) == contents(undisturbed)
