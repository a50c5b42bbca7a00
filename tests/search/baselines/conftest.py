"""Sessions over tiny families of eight layers, one plain and one with a fixed pattern of layers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.preparation import Preparation, prepare
from gptailor_merge.scoring.executor import Outcome
from gptailor_merge.scoring.racing import Race
from gptailor_merge.scoring.workplace import Workplace, open_workplace
from gptailor_merge.search.baselines.protocol import Baseline
from gptailor_merge.search.baselines.subject import Subject
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.search.driver import prune
from gptailor_merge.search.settings import settings_for
from tests.conftest import MakeFamily
from tests.zoo import write_family

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class Prepared:
    """A session, and how to run baselines in it.

    Attributes:
        tokens: that went through models to be scored.
        calls: to score.
    """

    def __init__(self, plans: Preparation, workplace: Workplace) -> None:
        self.plans, self.workplace = plans, workplace
        self.executor = workplace.evaluator("objectives")
        self.settings = settings_for(workplace, plans.space.sizes)
        self.space, self.tokens, self.calls = plans.space, 0, 0
        self._last_call: int | None = None

    def run(
        self, method: Baseline, file: Path, *, subject: Subject | None = None, seed: int = 0, budget: int = 24
    ) -> Candidate:
        settings = replace(self.settings, seed=seed, budget=budget)
        hidden = self.workplace.hidden
        with Journal(file) as journal:
            return prune(self.space, self, journal, settings, method, subject=subject, hidden=hidden)

    def score(self, plans: Sequence[Plan], race: Race | None = None) -> Sequence[Outcome]:
        """As the session's evaluator, but it may be interrupted."""
        if self.calls == self._last_call:
            raise KeyboardInterrupt
        self.calls += 1
        outcomes = self.executor.score(plans, race)
        self.tokens += sum(outcome.tokens for outcome in outcomes)
        return outcomes

    @contextmanager
    def interrupted(self, calls: int) -> Iterator[None]:
        """The next but so many calls to score are not survived."""
        self._last_call = self.calls + calls
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
        finally:
            self._last_call = None


Prepare = Callable[..., Prepared]


def config_of(family: dict[str, str], texts: dict[str, str], **more: Any) -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
            "target": {"layers": 5},
            "repair": {"texts": "scored"},
            "tune": {"steps": 0},
            "writes": {"tokens": 0},
            "objectives": [
                {
                    "kind": "kl",
                    "data": texts,
                    "teacher": {"sums": "math"},
                    "tokens": 256,
                    "sequence_length": 16,
                }
            ],
            "search": {"budget": 24, "population": 4},
            "out_dtype": "float32",
            **more,
        }
    )


@pytest.fixture(scope="session")
def deep(make_family: MakeFamily) -> dict[str, str]:
    """Eight layers alike."""
    return make_family(depth=8, dtype=torch.float32)


@pytest.fixture(scope="session")
def patterned(deep: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Eight layers, dense and sparse in turn by their index: removals must keep the turns."""
    made = write_family(tmp_path_factory.mktemp("patterned"), "ernie4_5_moe", torch.float32)
    for directory in made.values():
        for name in TOKENIZER:
            shutil.copy(Path(deep["base"]) / name, directory)
    return made


@pytest.fixture(scope="session")
def prepared(texts: dict[str, str]) -> Prepare:
    """The session of a family; the same arguments give the same one."""
    known: dict[str, Prepared] = {}

    def make(family: dict[str, str], **more: Any) -> Prepared:
        key = repr((family, more))
        if key not in known:
            plans = prepare(config_of(family, texts, **more))
            known[key] = Prepared(plans, open_workplace(plans.config, plans.family, torch.device("cpu")))
        return known[key]

    return make


def rows(file: Path) -> list[Any]:
    """All of a journal but the seconds."""
    with Journal(file) as journal:
        return [replace(candidate, seconds=0.0) for candidate in journal.candidates()]
