"""Scores and refines on Ray: one actor for each GPU, or for some CPUs, on this machine or on a cluster.

Plans and results travel, and once what is measured or fitted to; weights do not. Where no address is given,
Ray runs for this process only and listens on the loopback address; its dashboard is off, and it reports no
usage.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch

from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.cluster import WorkerLostError, first_line, sendable
from gptailor_merge.scoring.crew import Crew
from gptailor_merge.scoring.crew_pool import CrewPool
from gptailor_merge.scoring.threads import threads
from gptailor_merge.scoring.workplace import Job, ScoredSection, Workplace

REPORTS_USAGE, LISTENS_OUTSIDE = "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""The variables by which Ray, when it is imported, is told whether it reports its usage, and whether it
listens on other addresses than the loopback one where it joins no cluster."""


LOOPBACK = "127.0.0.1"

CLIENT = "ray://"
"""The beginning of the addresses of Ray's client, which runs the search's process on another machine."""


PACKAGE = "gptailor-merge"


OBJECT_STORE_BYTES = 128 * 1024**2
"""Room for what is measured, besides its own size."""


SECTIONS: tuple[ScoredSection, ...] = ("objectives", "gates", "held_out")


class RayPool(CrewPool):
    """The actors of a run."""

    def __init__(self, job: Job, workplace: Workplace) -> None:
        """Joins the cluster at the job's address, or starts Ray on this machine.

        Raises:
            ConfigError: Ray is not installed, or cannot be reached, or too few GPUs are here; or something
                that is measured cannot be sent.
        """
        measured = sendable({section: workplace.passes(section) for section in SECTIONS}, "measured")
        self._cluster = RayCluster(job, measured)
        super().__init__(Crew(self._cluster, progress=workplace.progress), workplace)
        self._crew.recruit()  # they start while this process goes on

    def close(self) -> None:
        """Ends the actors, and Ray if it was started here."""
        super().close()
        self._cluster.close()


class RayCluster:
    """Starts actors, and carries messages to them."""

    def __init__(self, job: Job, measured: bytes) -> None:
        self._ray = ray = _ray(job)
        self._left = 0
        self._asked, self._on_gpu = job.workers, torch.device(job.device).type == "cuda"
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect(ray, job, len(measured))
        from gptailor_merge.scoring.ray_worker import RayWorker

        # max_restarts: an actor that is lost is replaced by the crew, which knows what it was scoring.
        resources = {"num_gpus": 1} if self._on_gpu else {"num_cpus": threads()}
        self._cpus = threads()
        self._actor_class = ray.remote(max_restarts=0, max_task_retries=0, **resources)(RayWorker)
        self._job, self._measured = ray.put(replace(job, address=None)), ray.put(measured)

    def wanted(self) -> int:
        """Returns the number of workers that was asked for, or that the cluster has room for."""
        if self._asked != "auto":
            return self._asked
        resources = self._ray.cluster_resources()
        room = resources.get("GPU", 0) if self._on_gpu else resources.get("CPU", 0) // self._cpus
        return max(1, int(room))

    def start(self) -> tuple[Hashable, Hashable]:
        """Begins to start an actor."""
        actor = self._actor_class.remote(self._job, self._measured)
        return actor, actor.is_open.remote()

    def score(self, worker: Any, section: ScoredSection, rungs: range, plans: Sequence[Plan]) -> Hashable:
        """Lets an actor score plans on some rungs."""
        ticket: Hashable = worker.score_rungs.remote(section, rungs, plans)
        return ticket

    def share(self, content: bytes) -> Any:
        """Puts bytes where all actors find them."""
        return self._ray.put(content)

    def fit(self, worker: Any, fitting: Any, plans: Sequence[Plan]) -> Hashable:
        """Lets an actor refine plans."""
        ticket: Hashable = worker.fit.remote(fitting, plans)
        return ticket

    def first_answered(self, tickets: Sequence[Hashable], seconds: float) -> Hashable | None:
        """Waits for an answer."""
        answered, _ = self._ray.wait(list(tickets), num_returns=1, timeout=seconds)
        return answered[0] if answered else None

    def answer(self, ticket: Hashable) -> Any:
        """Returns an answer that has come.

        Raises:
            WorkerLostError: the actor is gone, or cannot go on.
        """
        try:
            return self._ray.get(ticket)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if error.cause is not None else error
            raise WorkerLostError(f"{type(cause).__name__}: {first_line(cause)}") from None
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(_reason(error), with_its_node=self._has_lost_a_machine()) from None

    def stop(self, worker: Any) -> None:
        """Ends an actor."""
        self._ray.kill(worker)

    def close(self) -> None:
        """Ends Ray if it was started here."""
        if self._is_ours:
            self._ray.shutdown()

    def _has_lost_a_machine(self) -> bool:
        """Tells whether machines have left the cluster since this was asked last."""
        before, self._left = self._left, sum(not node["Alive"] for node in self._ray.nodes())
        return self._left > before


def _ray(job: Job) -> Any:
    """Imports Ray, which keeps to itself.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault(REPORTS_USAGE, "0")
    if job.address is None:
        os.environ[LISTENS_OUTSIDE] = "0"
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        message = f"--workers needs Ray, which is not installed: pip install '{PACKAGE}[ray]'"
        raise ConfigError(message) from None
    if job.address is None:  # somebody may have imported Ray before
        constants: Any = importlib.import_module("ray._private.ray_constants")
        constants.ENABLE_RAY_CLUSTER = False
    return ray


def _connect(ray: Any, job: Job, measured_bytes: int) -> None:
    """Joins the cluster at the job's address, or starts Ray on this machine.

    Raises:
        ConfigError: the cluster cannot be reached, or this machine has too few GPUs.
    """
    # Ray's own notices of workers that are lost are told by the crew, in a sentence.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if job.address is None:
        options |= _of_this_machine(job) | {"object_store_memory": OBJECT_STORE_BYTES + 2 * measured_bytes}
    elif job.address.startswith(CLIENT):
        raise ConfigError(
            f"--ray-address: expected HOST:PORT or auto, found {job.address!r}; run the search on a machine "
            "of the cluster instead of through Ray's client"
        )
    else:
        options |= {"address": job.address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = "" if job.address is None else f" at {job.address}"
        raise ConfigError(f"Ray cannot be reached{where}: {first_line(error)}") from None


def _of_this_machine(job: Job) -> dict[str, Any]:
    """Returns the options of a Ray that runs for this process."""
    # "local" joins no cluster of somebody else that runs here.
    options: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "_node_ip_address": LOOPBACK,
    }
    if torch.device(job.device).type == "cuda":
        gpus = torch.cuda.device_count()
        if job.workers != "auto" and job.workers > gpus:
            raise ConfigError(f"--workers: expected at most {gpus}, one for each GPU, found {job.workers}")
        return options
    if job.workers != "auto":
        # More workers than cores are slow, and allowed.
        options["num_cpus"] = max(job.workers * threads(), os.cpu_count() or 1)
    return options


def _reason(error: Exception) -> str:
    """Returns why an actor is gone, without the names of machines and files that Ray gives."""
    if getattr(error, "actor_init_failed", False):
        *_, last = str(error).strip().splitlines()
        return last
    if "OutOfMemory" in type(error).__name__ or "out of memory" in str(error).lower():
        return "memory ran out"
    return "its process died"
