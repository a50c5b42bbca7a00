"""Finalists are refined on workers as in one process, also where workers are lost; on a made-up cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptailor_merge.composing.editing import save_map
from gptailor_merge.composing.memory import is_out_of_memory
from gptailor_merge.errors import FamilyError, Problem
from gptailor_merge.recipe.plan import MLP, Edit, Plan
from gptailor_merge.repair.cuts import with_edit
from gptailor_merge.runs import execution
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from gptailor_merge.scoring.cluster import WorkerLostError
from gptailor_merge.scoring.crew import Crew
from gptailor_merge.scoring.crew_fitter import CrewFitter
from gptailor_merge.scoring.crew_pool import CrewPool
from gptailor_merge.scoring.executor_pools import LOCAL, PoolFactory
from gptailor_merge.scoring.finalist_fits import (
    FitTask,
    Fitted,
    Fitter,
    LocalFitter,
    Progress,
    Refine,
    fit_on_worker,
)
from gptailor_merge.scoring.workplace import Workplace
from gptailor_merge.testing.executors import tiny_job, tiny_plans
from tests.scoring.test_crew import FakeCluster
from tests.scoring.test_ray_pool import contents, files, run_with

CPU: Any = SimpleNamespace(device=torch.device("cpu"))
"""A composer that composes nothing."""


class UnsendableError(Exception):
    def __init__(self, name: str, size: int) -> None:
        super().__init__(f"{name} of {size}")


ERRORS: dict[str, Callable[[], Exception]] = {
    "family": lambda: FamilyError(Problem(("family", "base"), "is no model")),
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "unsendable": lambda: UnsendableError("a map", 3),
}


@dataclass(frozen=True)
class MapFitter:
    """Fits maps to nothing, and fails where it is told to.

    Attributes:
        errors: digest of a plan -> the error that its fit ends with.
    """

    errors: dict[str, str] = field(default_factory=dict)

    def open(self, composer: Any, plans: Sequence[Plan]) -> Refine:
        def refine(plan: Plan, directory: Path, progress: Progress) -> tuple[Plan, int]:
            progress("fitting, step 1 of 2, about 99 s left: loss 2.0")
            if plan.digest in self.errors:
                raise ERRORS[self.errors[plan.digest]]()
            save_map(torch.eye(3), directory, "repair-0.safetensors")  # it was tried, and is of no use
            file, digest = save_map(torch.eye(2) * plan.kept[1], directory, "repair-1.safetensors")
            progress("fitting, step 2 of 2: loss 1.0")
            return with_edit(plan, 1, Edit(MLP, digest, str(file))), 7

        return refine


class Here(FakeCluster):
    """Its workers are this process."""

    composer = CPU
    evaluator: Any = None

    def fitted(self, fitting: Any, plan: Plan) -> Any:
        return fit_on_worker(self.composer, fitting, plan)

    def scored(self, section: Any, rungs: range, plans: Sequence[Plan]) -> Any:
        return self.evaluator(section).score_rungs(rungs, plans)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Plan]:
    return tiny_plans(tiny_job(tmp_path_factory.mktemp("job")))[:3]


def fit(
    fitter: Fitter, plans: Sequence[Plan], directory: Path, fitting: Any = MapFitter()
) -> tuple[list[list[Fitted]], list[str]]:
    """Returns what becomes of plans, together or not, until something is raised, and all that was told."""
    tasks = [FitTask(plan, directory / str(at), f"recipe {at}") for at, plan in enumerate(plans)]
    told: list[str] = []
    parts = []
    try:
        for part in fitter.fit(fitting, tasks, lambda at: told.append(f"begins {at}"), told.append):
            parts.append(list(part))
    except Exception as error:
        told.append(f"{error!r}{' of memory' * is_out_of_memory(error)}")
    return parts, told


def on_workers(cluster: FakeCluster) -> CrewFitter:
    return CrewFitter(Crew(cluster, clock=lambda: cluster.now))


def test_as_many_as_there_are_workers_are_refined_together(plans: list[Plan], tmp_path: Path) -> None:
    """The maps come back as they would be written here, and the plans name them where they are."""
    parts, told = fit(on_workers(Here(2)), plans, tmp_path / "sent")
    assert [len(part) for part in parts] == [2, 1]
    steps = ["fitting, step 1 of 2: loss 2.0", "fitting, step 2 of 2: loss 1.0"]
    assert told == [
        *("begins 0", "begins 1"),
        *(f"recipe {at}: {step}" for at in (0, 1) for step in steps),
        "begins 2",
        *(f"recipe 2: {step}" for step in steps),
    ]
    workplace: Any = SimpleNamespace(composer=CPU)
    alone, _ = fit(LocalFitter(workplace), plans, tmp_path / "here")
    for at, (sent, (here,)) in enumerate(zip(chain(*parts), alone, strict=True)):
        assert (sent.plan, sent.tokens, sent.cause) == (here.plan, here.tokens, None)
        (file,) = (Path(edit.file) for slot in sent.plan.slots for edit in slot.edits)
        assert file == tmp_path / "sent" / str(at) / "repair-1.safetensors"
        assert file.read_bytes() == (tmp_path / "here" / str(at) / file.name).read_bytes()
        assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("family", "FamilyError('family.base: is no model')"),
        ("memory", "OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB') of memory"),
        ("unsendable", "RuntimeError('UnsendableError: a map of 3')"),
    ],
)
def test_what_a_fit_raises_is_raised_here_after_those_before_it(
    kind: str, error: str, plans: list[Plan], tmp_path: Path
) -> None:
    cluster = Here(2)
    parts, told = fit(on_workers(cluster), plans, tmp_path, MapFitter({plans[1].digest: kind}))
    assert [[fitted.plan.kept for fitted in part] for part in parts] == [[plans[0].kept]]
    assert told[-1] == error
    assert not cluster.stopped


def test_what_cannot_be_sent_is_a_sentence(plans: list[Plan], tmp_path: Path) -> None:
    _, told = fit(on_workers(Here(2)), plans, tmp_path, lambda: None)
    assert told[0].startswith('ConfigError("what is fitted to cannot be sent to workers: ')


class HerePool(CrewPool):
    """Scores and refines on a made-up cluster whose workers are this process."""

    def __init__(self, trouble_in_fits: Any, workplace: Workplace) -> None:
        cluster = Here(2, trouble_in_fits=trouble_in_fits)
        cluster.composer, cluster.evaluator = workplace.composer, cache(workplace.evaluator)
        super().__init__(Crew(cluster, clock=lambda: cluster.now), workplace)


class TestSearch:
    """A search that repairs three finalists at their cuts and one everywhere, and tunes two."""

    @pytest.fixture(scope="class")
    @classmethod
    def document(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        document = dict(tiny_job(tmp_path_factory.mktemp("family")).config)
        search = {**document["search"], "budget": 8, "population": 4}
        stages = {"repair": {"finalists": 3}, "tune": {"finalists": 2, "steps": 2, "tokens": 256}}
        return document | {"search": search, "gates": [], "held_out": []} | stages

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(cls, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
        run = Run(tmp_path_factory.mktemp("here") / "run-0")
        run_with(document, None, run)
        return run

    def test_workers_that_are_lost_in_the_middle_of_fits_change_nothing(
        self, document: dict[str, Any], undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fits = count()

        def trouble(worker: int, part: Sequence[Plan]) -> Any:
            return WorkerLostError("its process died") if next(fits) % 3 == 0 else 1.0

        run = on_pool(trouble, document, tmp_path, monkeypatch)
        assert (contents(run), files(run)) == (contents(undisturbed), files(undisturbed))
        assert next(fits) == 6 + 3

    def test_fits_that_kill_workers_have_failed_and_the_search_goes_on(
        self, document: dict[str, Any], undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The best candidate can be neither repaired nor tuned; the others are as they would have been."""
        with Journal(undisturbed.journal) as journal:
            deadly, *others = list(journal.repairs().items())[:3]

        def trouble(worker: int, part: Sequence[Plan]) -> Any:
            return WorkerLostError("its process died") if part[0].digest == deadly[0] else 1.0

        run = on_pool(trouble, document, tmp_path, monkeypatch)
        with Journal(run.journal) as journal:
            repairs, tunings, best = journal.repairs(), journal.tunings(), journal.best()
        for failed in (repairs[deadly[0]], tunings[deadly[0]]):
            assert (failed.loss, failed.scores, failed.digest) == (None, {}, deadly[0])
            assert failed.cause == "2 workers were lost while they fitted it; the last: its process died"
        assert [(key, candidate.loss) for key, candidate in list(repairs.items())[1:3]] == [
            (key, candidate.loss) for key, candidate in others
        ]
        causes = [candidate.cause for key, candidate in tunings.items() if key != deadly[0]]
        assert causes == ["tuning does not help"]
        assert best is not None
        assert best.digest == deadly[0]


def on_pool(
    trouble_in_fits: Any, document: dict[str, Any], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Searches on a made-up cluster."""
    factory: PoolFactory = lambda job, workplace: HerePool(trouble_in_fits, workplace)  # noqa: E731
    monkeypatch.setattr(execution, "EXECUTORS", {LOCAL: factory})
    run = Run(directory / "run-0")
    run_with(document, None, run)
    return run
