"""Trackers: what they are told stands in their own files."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.summary import Summary
from gptailor_merge.search.candidates import Counts
from gptailor_merge.tracking.trackers import TRACKERS, chosen, telling
from tests.report.runs import candidate, one_recipe

# Of the libraries that trackers import.
pytestmark = pytest.mark.filterwarnings("ignore")

Read = Callable[[Run], dict[str, list[tuple[int, float]]]]


@pytest.fixture
def config() -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "family": {"base": "/home/alice/base", "variants": {"math": "/home/alice/math"}},
            "target": {"layers": 4},
            "objectives": [{"kind": "kl", "data": {"a": "/home/alice/a.jsonl"}}],
            "seed": 5,
        }
    )


def summary(run: Run) -> Summary:
    held_out = {model: {"perplexity": {"total": value}} for model, value in (("base", 2.0), ("found", 3.0))}
    return Summary("d", run.best, 0.3, {}, Counts(6, 1, 1, 1, 0, 0, 325, 2.1), held_out, {})


def read_tensorboard(run: Run) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = EventAccumulator(str(run.path / "tensorboard"))
    made.Reload()
    return {tag: [(e.step, e.value) for e in made.Scalars(tag)] for tag in made.Tags()["scalars"]}


def read_trackio(run: Run) -> dict[str, list[tuple[int, float]]]:
    database = trackio_database()
    found: dict[str, list[tuple[int, float]]] = {}
    query = "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id"
    for step, text in database.execute(query, (run.path.name,)):
        for key, value in json.loads(text).items():
            if isinstance(value, (int, float)):
                found.setdefault(key, []).append((step, value))
    database.close()
    return found


def trackio_database() -> sqlite3.Connection:
    from trackio.utils import TRACKIO_DIR

    return sqlite3.connect(Path(TRACKIO_DIR) / "gptailor.db")


READ: dict[str, Read] = {"tensorboard": read_tensorboard, "trackio": read_trackio}
"""Every tracker that the tests have the library of; a further one is an entry here."""


@pytest.fixture(autouse=True)
def own_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """trackio reads where it keeps its files when it is imported."""
    directory = tmp_path_factory.mktemp("trackio")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", str(directory))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        del sys.modules[name]


def tell(name: str, run: Run, config: SearchConfig, *, upto: int = 6) -> None:
    run.path.mkdir(exist_ok=True)
    with telling([name], run, config) as told:
        for one in one_recipe()[:upto]:
            told.candidate(one)
        if upto == 6:
            told.summary(summary(run))


@pytest.mark.parametrize("name", READ)
def test_every_candidate_is_told_with_its_number(name: str, config: SearchConfig, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    tell(name, run, config)
    found = READ[name](run)
    assert found["tokens"] == [(0, 100), (1, 200), (2, 225), (3, 325), (4, 325), (5, 325)]
    # A probe is of another size, and a failure has no loss; an estimate is no best.
    assert found["loss"] == [(n, pytest.approx(x)) for n, x in ((1, 0.5), (2, 0.7), (3, 0.3), (5, 0.3))]
    assert found["best"] == [
        (n, pytest.approx(x)) for n, x in ((1, 0.5), (2, 0.5), (3, 0.3), (4, 0.3), (5, 0.3))
    ]
    assert [step for step, _ in found["scores/kl"]] == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("name", READ)
def test_at_the_end_it_is_told_what_the_run_came_to(name: str, config: SearchConfig, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    tell(name, run, config)
    found = READ[name](run)
    assert [value for _, value in found["held_out/base/perplexity/total"]] == [2.0]
    assert [value for _, value in found["held_out/found/perplexity/total"]] == [3.0]


@pytest.mark.parametrize("name", READ)
def test_what_was_told_of_a_search_that_breaks_off_is_kept(
    name: str, config: SearchConfig, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()

    def broken_off() -> None:
        with telling([name], run, config) as told:
            told.candidate(one_recipe()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert READ[name](run)["tokens"] == [(0, 100)]


@pytest.mark.parametrize("name", READ)
def test_no_path_and_no_user_reaches_it(
    name: str, config: SearchConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trackio.utils import TRACKIO_DIR

    run = Run(tmp_path / "run")
    tell(name, run, config)
    files = [file for root in (run.path, Path(TRACKIO_DIR)) for file in root.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        for secret in (b"alice", str(tmp_path).encode(), b"_Username"):
            assert secret not in content, (file.name, secret)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", READ)
def test_a_run_that_was_refused_leaves_nothing(name: str, config: SearchConfig, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    with telling([name], run, config):
        pass
    assert list(run.path.iterdir()) == []


def test_a_resumed_run_is_told_anew_in_tensorboard(config: SearchConfig, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    tell("tensorboard", run, config, upto=3)
    tell("tensorboard", run, config)
    assert [step for step, _ in read_tensorboard(run)["tokens"]] == [0, 1, 2, 3, 4, 5]


def test_of_a_front_no_loss_is_told(config: SearchConfig, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    document: dict[str, Any] = {
        **config.model_dump(mode="json", exclude_none=True),
        "target": {"layers": [3, 4]},
    }
    with telling(["tensorboard"], run, SearchConfig.model_validate(document)) as told:
        told.candidate(candidate(0, "scored", 0.5, 0.1))
    assert set(read_tensorboard(run)) == {"tokens", "seconds", "scores/kl"}


def test_names_are_read_in_both_ways_and_each_once() -> None:
    assert chosen([]) == chosen(["none"]) == ()
    assert chosen(["tensorboard,trackio", "trackio"]) == ("tensorboard", "trackio")


def test_what_cannot_be_told_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown tracker, found 'trakio'; did you mean 'trackio'"):
        chosen(["trakio"])
    with pytest.raises(ConfigError, match="none stands alone, found none, trackio"):
        chosen(["none", "trackio"])
    monkeypatch.setitem(sys.modules, "wandb", None)  # whether it is installed or not
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'gptailor-merge\[wandb\]'"):
        chosen(["wandb"])


def test_each_tracker_has_an_extra() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for name in TRACKERS:
        assert f'{name} = ["{name}"]' in pyproject
    assert set(READ) <= set(TRACKERS)
