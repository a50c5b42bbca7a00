"""Every optimiser keeps the contract, and proposes what the version before proposed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gptailor_merge.errors import ConfigError, SearchError
from gptailor_merge.runs.journal import Journal
from gptailor_merge.search.driver import search
from gptailor_merge.search.optimizers.nevergrad import DEFAULT
from gptailor_merge.search.optimizers.registry import OPTIMIZERS, check, create
from gptailor_merge.testing.optimizers import OptimizerContract
from tests.search.test_driver import SETTINGS, FakeScorer
from tests.space.test_goldens import SPACES
from tests.space.test_space import space

NAMES = [
    DEFAULT,
    "RecMixES",
    "DE",
    "PortfolioDiscreteOnePlusOne",
    "RandomSearch",
    "CMA",
    "NGOpt",
]


@pytest.mark.parametrize("name", NAMES)
class TestNevergrad(OptimizerContract):
    """Our default, and some of nevergrad's of each kind."""

    @pytest.fixture
    def in_one_interpreter(self) -> tuple[str, ...]:
        return tuple(NAMES)


PROPOSALS = {
    (DEFAULT, 8, ()): "4a7d0e7a41ff1198",
    ("DE", 8, ()): "7d3e95b380fd74db",
    ("CMA", 8, ()): "e9e0fecbb255d8f4",
    ("RandomSearch", 8, ()): "a313e480a914fd1f",
    ("PortfolioDiscreteOnePlusOne", 8, ()): "bbc44685381622a8",
    ("NGOpt", 8, ()): "8df2c32b47cb9988",
    ("OnePlusOne", 1, ()): "dea0f963a4b0bb51",
    (DEFAULT, 8, ("a", "b")): "d94e8721029ce3da",
}
"""The digests of forty proposals; those of nevergrad's own moves are version 0.1's (commit 83765a0)."""


@pytest.mark.filterwarnings("ignore")  # nevergrad's own
@pytest.mark.parametrize(("name", "population", "axes"), PROPOSALS)
def test_proposals_are_those_of_the_version_before(name: str, population: int, axes: tuple[str, ...]) -> None:
    searched = SPACES["all"]
    optimizer = create(name, searched, budget=40, population=population, seed=3, axes=axes)
    optimizer.suggest([searched.random(np.random.RandomState(i)) for i in range(population)])
    digests = hashlib.sha256()
    for _ in range(40 // population):
        for proposal in optimizer.ask(population):
            digests.update(f"{searched.decode(proposal.point).digest}\n".encode())
            losses = [float(proposal.point["removal"].sum()), float(proposal.point["kind"].sum())]
            optimizer.tell(proposal, losses if axes else losses[:1])
    assert digests.hexdigest()[:16] == PROPOSALS[name, population, axes]


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        check("OneplusOne", racing=None)
    assert "search.optimizer: unknown optimizer, found 'OneplusOne'; did you mean 'OnePlusOne'?" in str(
        caught.value
    )


def test_an_optimizer_that_takes_one_at_a_time_says_so() -> None:
    with pytest.raises(ConfigError, match=r"search\.optimizer: SPSA: .*; set search\.population to 1"):
        create("SPSA", space(), budget=8, population=4, seed=0)


class Exhausted:
    """An optimiser that has nothing more to propose, and of which all losses count."""

    keeps = None

    def suggest(self, points: object) -> None: ...

    def ask(self, count: int) -> list[object]:
        return []


def test_an_optimizer_that_proposes_nothing_stops_the_search(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "j.db") as journal,
        pytest.raises(SearchError, match="was asked for 8 candidates and gave 0"),
    ):
        search(space(), FakeScorer(), journal, SETTINGS, warm=(), make_optimizer=lambda *_, **__: Exhausted())  # type: ignore[arg-type,return-value]


def test_our_default_is_the_first_of_all() -> None:
    assert next(iter(OPTIMIZERS)) == DEFAULT
    assert len(OPTIMIZERS) > 100


@pytest.mark.parametrize("axes", [(), ("a", "b")])
def test_the_default_keeps_no_points_but_its_parents(axes: tuple[str, ...]) -> None:
    optimizer = create(DEFAULT, SPACES["all"], budget=40, population=8, seed=3, axes=axes)
    for proposal in [*optimizer.ask(8), *optimizer.ask(8), *optimizer.ask(8)]:
        optimizer.tell(proposal, [1.0] * max(1, len(axes)))
    inner = optimizer._optimizer
    assert len(inner.archive) == 0
    assert inner._hypervolume_pareto is None
    assert len(inner._population) == (8 if axes else 2)
