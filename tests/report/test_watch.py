"""A run's page while the search goes on."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.errors import ConfigError, InputError
from gptailor_merge.report.watch import HOST, Server, Watched
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run
from tests.report.browser import look, opened
from tests.report.runs import one_recipe, write

watch_module = sys.modules[Server.__module__]


@contextmanager
def serving(run: Run) -> Iterator[Server]:
    with Server(Watched(run)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: Server, path: str, host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection(HOST, server.server_port, timeout=30)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


def test_news_are_told_once_there_are_some(tmp_path: Path) -> None:
    candidates = one_recipe()
    run = write(tmp_path / "run", candidates[:2], done=False)
    with serving(run) as server:
        status, text = get(server, "/")
        assert status == 200
        assert "4 of 5 layers: loss (kl, nats) 0.500 so far." in text
        state = json.loads(get(server, "/state?since=")[1])
        assert get(server, f"/state?since={state['stamp']}") == (204, "")
        with Journal(run.journal) as journal:
            journal.record(candidates[2:])
        status, text = get(server, f"/state?since={state['stamp']}")
        news = json.loads(text)
        assert status == 200
        assert "4 of 5 layers: loss (kl, nats) 0.300 so far." in news["main"]
        assert set(news["figures"]) == {"light", "dark"}
        run.best.write_text(candidates[3].recipe)
        assert (
            "Found by gptailor-evolve" in json.loads(get(server, f"/state?since={news['stamp']}")[1])["main"]
        )


def test_a_journal_that_cannot_be_read_is_unavailable_until_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", one_recipe())
    whole = run.journal.read_bytes()
    with serving(run) as server:
        assert get(server, "/")[0] == 200
        for damaged in (b"no database " * 99, whole[: len(whole) // 2]):
            run.journal.write_bytes(damaged)
            for path in ("/", "/state?since=x"):
                status, text = get(server, path)
                assert (status, "journal.db: cannot be" in text) == (503, True), text
        run.journal.write_bytes(whole)
        assert get(server, "/")[0] == 200
        run.config.write_text("family: {")
        run.best.write_text("a new stamp")
        status, text = get(server, "/")
        assert (status, text.startswith(f"{run.config}: not valid YAML in line 1: ")) == (503, True)
    assert capsys.readouterr() == ("", "")


def test_more_connections_than_a_browser_opens_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch_module, "CONNECTIONS", 3)
    run = write(tmp_path / "run", one_recipe())
    with serving(run) as server, ExitStack() as open_connections:
        address = (HOST, server.server_port)
        connections = [
            open_connections.enter_context(socket.create_connection(address, timeout=30)) for _ in range(4)
        ]
        assert connections[3].recv(1) == b""
        connections[0].sendall(b"GET / HTTP/1.1\r\nHost")  # broken off
        open_connections.close()
        for _ in range(1000):  # until the server has seen that they are closed
            with suppress(OSError):
                status, _ = get(server, "/")
                break
        assert status == 200
    assert capsys.readouterr() == ("", "")


def test_a_silent_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module._PageHandler, "timeout", 0.05)
    with (
        serving(write(tmp_path / "run", one_recipe())) as server,
        socket.create_connection((HOST, server.server_port), timeout=30) as silent,
    ):
        silent.sendall(b"GET / HTTP/1.1\r\n")
        assert silent.recv(1) == b""


def test_a_search_that_has_written_nothing_yet_is_waited_for(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [], done=False)
    run.journal.unlink()
    with serving(run) as server:
        assert "Waiting for the first candidates" in get(server, "/")[1]
        with Journal(run.journal) as journal:
            journal.record(one_recipe())
        assert "0.300 so far" in get(server, "/")[1]
    with pytest.raises(InputError, match="no such run; expected a run directory"):
        Watched(Run(tmp_path))


def test_the_search_is_not_disturbed(tmp_path: Path) -> None:
    """It commits without any patience while the page is asked for again and again."""
    run = write(tmp_path / "run", one_recipe(), done=False)
    search = sqlite3.connect(run.journal, timeout=0, isolation_level=None, check_same_thread=False)
    with serving(run) as server:
        for number in range(5):
            search.execute("BEGIN IMMEDIATE")
            search.execute("INSERT OR REPLACE INTO meta VALUES ('n', ?)", (str(number),))
            assert get(server, "/state?since=")[0] == 200
            search.execute("COMMIT")
            assert get(server, "/state?since=")[0] == 200
    search.close()


def test_only_this_machine_is_served(tmp_path: Path) -> None:
    """Neither another address nor another host name, which a browser may believe to talk to, is served."""
    run = write(tmp_path / "run", one_recipe())
    with serving(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert get(server, "/", host=f"localhost:{server.server_port}")[0] == 200
        assert get(server, "/", host=f"evil.example:{server.server_port}") == (403, "")
        assert get(server, "/../config.yml") == (404, "")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe())
    with (
        serving(run) as server,
        pytest.raises(ConfigError, match=f"--port {server.server_port} cannot be had"),
    ):
        Server(Watched(run), server.server_port)


def test_a_browser_redraws_what_has_changed(chromium: Any, tmp_path: Path) -> None:
    candidates = one_recipe()
    run = write(tmp_path / "run", candidates[:1], done=False)
    with serving(run) as server, opened(chromium, server.url, width=1280, scheme="dark") as (tab, seen):
        assert list(look(tab)["charts"]) == ["cost"]
        with Journal(run.journal) as journal:
            journal.record(candidates[1:])
        tab.wait_for_selector("#map .heatmaplayer image", state="attached", timeout=20000)
        charts = look(tab)["charts"]
    assert sorted(charts) == ["agreement", "cost", "map", "progress-seconds", "progress-tokens"]
    assert all(chart["marks"] for chart in charts.values())
    assert seen.complaints == []
    assert {url.split("?")[0] for url in seen.fetched} == {server.url, f"{server.url}state"}
