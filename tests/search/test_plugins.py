"""An optimiser and a baseline of another package: one file and an entry point each, outside of this tree."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gptailor_merge.cli.app import evolve_main, main
from gptailor_merge.errors import ConfigError
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.journal import Journal
from gptailor_merge.search.baselines.registry import baseline
from gptailor_merge.search.optimizers.registry import check
from gptailor_merge.testing.baselines import BaselineContract
from gptailor_merge.testing.optimizers import OptimizerContract
from tests.packages import command, install
from tests.search.test_driver import config_of

MODULE = '''
import numpy as np

from gptailor_merge.search.optimizers.protocol import Proposal


class Walk:
    """Goes on from the best point so far."""

    keeps = 1

    def __init__(self, space, *, budget, population, seed, axes):
        self.space, self.rng = space, np.random.RandomState(seed)
        self.first, self.count, self.best = [], 0, (np.inf, None)

    def suggest(self, points):
        self.first = list(points)

    def ask(self, count):
        return [self._proposal() for _ in range(count)]

    def tell(self, proposal, losses):
        self.best = min(self.best, (sum(losses), proposal.point), key=lambda pair: pair[0])

    def _proposal(self):
        self.count += 1
        if self.first:
            point = self.first.pop(0)
        elif self.best[1] is None:
            point = self.space.random(self.rng)
        else:
            point = self.space.mutate(self.best[1], self.rng)
        return Proposal(f"{self.count}", point)


class Last:
    """Removes the last layers that may be removed."""

    in_space = True

    def candidates(self, space, budget):
        return len(space.sizes)

    def find(self, problem):
        space = problem.space
        removals = [space.removable[size - space.depth :] for size in space.sizes]
        return [problem.subject.without(removed) for removed in removals]


last = Last()
'''
ENTRY_POINTS = """
[gptailor_merge.optimizers]
walk = their_search:Walk
gone = their_search:NoLongerThere
number = their_search:np.e

[gptailor_merge.baselines]
last = their_search:last
kind = their_search:Last
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package, as pip leaves it in site-packages."""
    site = tmp_path_factory.mktemp("site")
    return install(site, "their-search", ENTRY_POINTS, {"their_search": MODULE})


@pytest.fixture
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is found in this process and in those that it starts."""
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]))
    yield
    sys.modules.pop("their_search", None)


@pytest.fixture
def config(family: dict[str, str], texts: dict[str, str], tmp_path: Path) -> Path:
    file = tmp_path / "search.yml"
    file.write_text(config_of(family, texts, budget=24).to_yaml())
    return file


def with_optimizer(config: Path, name: str) -> str:
    document = yaml.safe_load(config.read_text())
    document["search"]["optimizer"] = name
    config.write_text(yaml.safe_dump(document))
    return str(config)


@pytest.mark.usefixtures("installed")
def test_a_search_with_an_optimizer_from_outside(config: Path, tmp_path: Path) -> None:
    """It is raced, since it is known what the optimiser keeps."""
    file, out = with_optimizer(config, "walk"), str(tmp_path / "run")
    answer = command(evolve_main, file, "--out", out, "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    with Journal(Directory(tmp_path / "run").journal) as journal:
        assert journal.counts().candidates == 24
        assert journal.counts().dropped > 0


@pytest.mark.usefixtures("installed")
def test_a_baseline_from_outside(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = command(main, "baseline", "last", str(config), "--out", str(out), "--device", "cpu")
    assert answer.returncode == 0, answer.stderr
    recipe = Recipe.load(Directory(out).best)
    removed = [part.sources[0].layer_range for part in recipe.slices if part.parameter("op") == "remove"]
    assert removed == [(2, 4)]


REFUSALS = {
    "gone": "search.optimizer: the optimizer 'gone' of their-search cannot be imported",
    "number": "search.optimizer: 'number' is a float; expected a function or a class",
    "wolk": "search.optimizer: unknown optimizer, found 'wolk'; did you mean 'walk'?",
    "kind": "the baseline 'kind' is the class Last; expected an object with in_space, candidates and find",
}


@pytest.mark.usefixtures("installed")
def test_what_cannot_be_used_is_a_sentence(config: Path, tmp_path: Path) -> None:
    for name, message in REFUSALS.items():
        with pytest.raises(ConfigError) as error:
            baseline(name) if name == "kind" else check(name, racing=None)
        assert str(error.value).startswith(message)
    answer = command(evolve_main, with_optimizer(config, "wolk"), "--out", str(tmp_path / "run"))
    assert answer.returncode == 2
    assert REFUSALS["wolk"] in " ".join(answer.stderr.split())


@pytest.mark.weekly
@pytest.mark.usefixtures("installed")
class TestWalk(OptimizerContract):
    """The package inherits our contract suites."""

    @pytest.fixture
    def name(self) -> str:
        return "walk"


@pytest.mark.weekly
@pytest.mark.usefixtures("installed")
class TestLast(BaselineContract):
    """The package inherits our contract suites."""

    @pytest.fixture
    def name(self) -> str:
        return "last"
