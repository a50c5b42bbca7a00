"""`gptailor report`, `gptailor watch` and `gptailor-evolve --report-to`, as a user types them."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from gptailor_merge.report.watch import Server
from gptailor_merge.runs import run as runs
from tests.cli.test_app import Run, config, run
from tests.report.runs import candidate, one_recipe, perplexities, write

__all__ = ["config", "run"]


def test_a_search_writes_its_report_and_tells_its_trackers(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--device", "cpu", "--no-model", "--report-to", "tensorboard")
    code, printed, error = run(config, "--out", out, *options, evolve=True)
    assert (code, error.count("Error")) == (0, 0), error
    assert f"report  {out / 'report.html'}" in printed.splitlines()
    text = (out / "report.html").read_text(encoding="utf-8")
    assert runs.Run(out).summary().digest in text
    assert str(tmp_path) not in text
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))


def test_a_tracker_that_is_not_there_is_told_before_anything_is_done(
    run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, error = run(config, "--out", tmp_path / "run", "--report-to", "wandb", evolve=True)
    assert code == 2
    assert error == (
        "Error: --report-to wandb: wandb is not installed; pip install 'gptailor-merge[wandb]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_report_is_written_of_a_run_with_others_beside_it(run: Run, tmp_path: Path) -> None:
    held_out = perplexities(base=1.0, found=1.5)
    made = write(tmp_path / "run", one_recipe(), held_out=held_out)
    for name, loss in (("sleb", 0.4), ("laco", 0.6)):
        write(tmp_path / name, [candidate(0, "scored", loss, 0.7)], meta={"baseline": name})
    others = [part for name in ("sleb", "laco") for part in ("--baseline", tmp_path / name)]
    assert run("report", made.path, *others) == (0, f"report  {made.report}\n", "")
    text = made.report.read_text(encoding="utf-8")
    assert '"name":"sleb"' in text
    assert '"name":"laco"' in text


def test_what_is_no_run_is_said(run: Run, tmp_path: Path) -> None:
    made = write(tmp_path / "run", one_recipe())
    strange = write(tmp_path / "strange", [candidate(0, "scored", 0.4, 0.7, fingerprint="g")])
    code, _, error = run("report", made.path, "--baseline", strange.path)
    assert (code, error.count("\n")) == (2, 1)
    assert "strange was scored on something else; expected a run of the same search config" in error
    for command in ("report", "watch"):
        code, _, error = run(command, tmp_path)
        assert (code, error.count("\n")) == (2, 1)
        assert "expected a run directory of gptailor-evolve" in error


def test_watch_serves_until_it_is_interrupted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write(tmp_path / "run", one_recipe(), done=False)
    served: list[tuple[str, bytes]] = []

    def once(server: Server) -> None:
        with ThreadPoolExecutor(1) as visitor:
            page = visitor.submit(lambda: urlopen(server.url, timeout=30).read())
            server.handle_request()
            served.append((server.url, page.result()))
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", once)
    code, printed, error = run("watch", made.path, "--port", "0")
    ((url, page),) = served
    assert (code, printed.split()[0], error) == (0, url, "")
    assert url.startswith("http://127.0.0.1:")
    assert b"gptailor-evolve is running" in page
