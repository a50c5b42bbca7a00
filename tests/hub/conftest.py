"""A stand-in Hub, processes whose client speaks to it, and a run to publish."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest
import yaml

from tests.conftest import MakeFamily
from tests.hub.stand_in import TOKEN, StandIn, serving
from tests.report.conftest import runs as runs
from tests.report.conftest import search_config as search_config

ROOT = Path(__file__).parents[2]
USER = "someone_private"
"""The name of the user who runs the tests; no published file may hold it."""
REPO = "me/small"


@dataclass(frozen=True)
class Done:
    """A command that ended.

    Attributes:
        slept: how long the client would have waited, each time it tried again.
        value: of code its `result`.
    """

    code: int
    out: str
    err: str
    value: Any
    slept: list[float]


class Worker:
    """A process with the client; see worker.py."""

    def __init__(self, directory: Path, endpoint: str, **environment: str) -> None:
        home = directory / "home" / USER
        home.mkdir(parents=True)
        self.home = home
        self.log = directory / "stderr"
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HOME": str(home),
            "USER": USER,
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        with self.log.open("w") as log:
            self._process = self._start(log, env)

    def _start(self, log: TextIO, env: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.hub.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
            cwd=env["HOME"],
        )

    def __call__(self, *arguments: object, evolve: bool = False, **environment: str | None) -> Done:
        kind = "evolve" if evolve else "gptailor"
        return self._ask(kind=kind, arguments=[*map(str, arguments)], environment=environment)

    def run_code(self, code: str) -> Any:
        """Runs code in the process and returns what it leaves in `result`."""
        done = self._ask(kind="code", code=code, environment={})
        assert done.code == 0, done.err
        return done.value

    def _ask(self, **asked: Any) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def server() -> Iterator[StandIn]:
    with serving() as hub:
        yield hub


@pytest.fixture(scope="session")
def workers(server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Worker]]:
    """Two clients, one without xet and one with it, started together."""
    made = (
        Worker(tmp_path_factory.mktemp("lfs"), server.endpoint, HF_HUB_DISABLE_XET="1"),
        Worker(tmp_path_factory.mktemp("xet"), server.endpoint),
    )
    yield made
    for worker in made:
        worker.close()


@pytest.fixture(scope="session")
def by_lfs(workers: tuple[Worker, Worker]) -> Worker:
    """A client without xet."""
    return workers[0]


@pytest.fixture(scope="session")
def by_xet(workers: tuple[Worker, Worker]) -> Worker:
    """A client with xet."""
    return workers[1]


@pytest.fixture
def hub(server: StandIn) -> StandIn:
    """An empty Hub."""
    fresh = StandIn()
    vars(server).update({**vars(fresh), "endpoint": server.endpoint})
    return server


@pytest.fixture(scope="session")
def members(make_family: MakeFamily, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, math and code in directories of a private place, with cards."""
    root = tmp_path_factory.mktemp("private")
    made = {}
    for name, directory in make_family(depth=4).items():
        made[name] = Path(shutil.copytree(directory, root / f"tiny-{name}"))
        card = "---\nlicense: apache-2.0\nlanguage: [en]\n---\n"
        (made[name] / "README.md").write_text(card)
    return made


WriteConfig = Callable[..., Path]


@pytest.fixture(scope="session")
def write_config(
    texts: dict[str, str], members: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> WriteConfig:
    """Writes a small search config; top-level keys can be replaced."""
    root = tmp_path_factory.mktemp("configs")
    others = {}
    for name, file in texts.items():
        rows = [json.loads(line)["text"] for line in Path(file).read_text().splitlines()]
        others[name] = str(root / f"other-{name}.jsonl")
        Path(others[name]).write_text("".join(json.dumps({"text": row[::-1]}) + "\n" for row in rows))

    def write(name: str, **top: Any) -> Path:
        document = {
            "family": {
                "base": str(members["base"]),
                "variants": {n: str(members[n]) for n in ("math", "code")},
            },
            "target": {"remove": 1},
            "repair": {"texts": "scored"},
            "tune": {"steps": 0},
            "writes": {"tokens": 0},
            "objectives": [{"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16}],
            "held_out": [
                {"kind": "perplexity", "data": others, "tokens": 64, "sequence_length": 16},
                {"kind": "decode_latency", "tokens": 8},
            ],
            "search": {"budget": 6, "population": 4, "warm_start": []},
            **top,
        }
        file = root / f"{name}.yml"
        file.write_text(yaml.safe_dump(document))
        return file

    return write


@pytest.fixture(scope="session")
def searched(by_lfs: Worker, write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    done = by_lfs(write_config("plain"), "--out", run, "--device", "cpu", evolve=True)
    assert done.code == 0, done.err
    return run


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A finished run."""
    return Path(shutil.copytree(searched, tmp_path / "run"))
