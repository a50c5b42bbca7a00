"""`--report-to` names trackers of this package and of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptailor_merge.errors import ConfigError
from gptailor_merge.tracking.registry import BUILT_IN, GROUP, tracker_factories
from gptailor_merge.tracking.tensorboard_tracker import TensorBoardTracker
from tests.packages import install
from tests.tracking.readers import READERS

ROOT = Path(__file__).parents[2]

LEDGER = '''
"""A tracker that appends JSON lines to a file in the run directory."""

import json

class Ledger:
    def __init__(self, directory, name, settings):
        self.file = directory / "ledger.jsonl"
        self.write(name=name, settings=settings)

    def write(self, **entry):
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\\n")

    def log(self, step, numbers):
        self.write(step=step, numbers=dict(numbers))

    def finish(self, results):
        self.write(results=dict(results))
'''


def offer(directory: Path, *trackers: str, module: str = "", package: str = "ledger-tracker") -> Path:
    """Writes a package as pip would install it, with entry points for trackers; returns its directory."""
    entry_points = f"[{GROUP}]\n" + "".join(f"{line}\n" for line in trackers)
    return install(directory, package, entry_points, {"ledger": module or LEDGER})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed packages, empty at first."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "ledger", raising=False)
    return tmp_path / "site"


def test_names_may_be_parted_by_commas_and_count_once() -> None:
    assert tracker_factories([]) == tracker_factories(["none"]) == {}
    factories = tracker_factories(["tensorboard,trackio", "trackio"])
    assert list(factories) == ["tensorboard", "trackio"]
    assert factories["tensorboard"] is TensorBoardTracker


def test_unusable_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown tracker, found 'trakio'; did you mean 'trackio'"):
        tracker_factories(["trakio"])
    with pytest.raises(ConfigError, match="none stands alone, found none, trackio"):
        tracker_factories(["none", "trackio"])
    monkeypatch.setitem(sys.modules, "wandb", None)  # whether it is installed or not
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'gptailor-merge\[wandb\]'"):
        tracker_factories(["wandb"])


def test_each_built_in_tracker_has_an_extra() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in BUILT_IN:
        assert f'{name} = ["{name}"]' in pyproject
    assert set(READERS) <= set(BUILT_IN)


def test_another_package_offers_a_tracker(site: Path) -> None:
    offer(site, "ledger = ledger:Ledger")
    assert [factory.__name__ for factory in tracker_factories(["ledger"]).values()] == ["Ledger"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="did you mean 'ledger'"):
        tracker_factories(["ledgr"])


@pytest.mark.parametrize(
    ("entry_point", "module", "message"),
    [
        (
            "ledger = ledgers:Ledger",
            "",
            "of ledger-tracker cannot be imported from ledgers:Ledger: ModuleNotFoundError",
        ),
        (
            "ledger = ledger:Lodger",
            "",
            "of ledger-tracker cannot be imported from ledger:Lodger: AttributeError",
        ),
        (
            "ledger = ledger:Ledger",
            "1 / 0",
            "cannot be imported from .*: ZeroDivisionError: division by zero",
        ),
        (
            "ledger = ledger:Ledger",
            "Ledger = 3",
            "expected a class or a function that makes a tracker, found a int",
        ),
        ("wandb = ledger:Ledger", "", "wandb: several packages offer .*; uninstall all but one"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named(
    site: Path, entry_point: str, module: str, message: str
) -> None:
    offer(site, entry_point, module=module)
    with pytest.raises(ConfigError, match=f"--report-to .*{message}"):
        tracker_factories([entry_point.split(" ")[0]])
    assert tracker_factories(["tensorboard"])  # a tracker that is not asked for does no harm


@pytest.mark.weekly
def test_a_search_feeds_a_tracker_of_another_package(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    """Nothing but the installed package is needed: neither an import nor a line in this tree."""
    site = offer(tmp_path / "site", "ledger = ledger:Ledger")
    config = tmp_path / "search.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "family": {"base": family["base"], "variants": {"math": family["math"]}},
                "target": {"layers": 3},
                "repair": {"texts": "scored"},
                "tune": {"steps": 0},
                "writes": {"tokens": 0},
                "objectives": [{"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16}],
                "search": {"budget": 6, "population": 3},
            }
        )
    )
    out = tmp_path / "run"
    command = "from gptailor_merge.cli.app import evolve_main; evolve_main()"
    options = ["--out", str(out), "--device", "cpu", "--no-model", "--report-to", "ledger"]
    done = subprocess.run(
        [sys.executable, "-c", command, str(config), *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *entries = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert (first["name"], first["settings"]["budget"], first["settings"]["members"]) == ("run", 6, 2)
    assert [entry["step"] for entry in entries[:-1]] == [0, 1, 2, 3, 4, 5]
    assert all("loss" in entry["numbers"] for entry in entries[:-1])
    assert entries[-1] == {"results": {}}  # nothing is held out
