"""Shows a run as a page: in one file, or served while the search goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptailor_merge.api.arguments import AnyPath, run_in
from gptailor_merge.report.page import write_report
from gptailor_merge.report.watch import Server, Watched
from gptailor_merge.runs.lock import locked
from gptailor_merge.runs.run import Run


def report(run: AnyPath | Run, *, baselines: Sequence[AnyPath | Run] = ()) -> Path:
    """Writes RUN/report.html, a page on the run that needs nothing else, and returns it.

        print(report("runs/first", baselines=["runs/shortgpt"]))

    Args:
        run: a run, or its directory.
        baselines: other runs of the same search config, drawn as lines.

    Raises:
        InputError: a directory holds no run, or a run that was scored on something else, or another process
            is writing the run.
    """
    shown = run_in(run)
    with locked(shown.path, advice="look at it with  gptailor watch  until it ends"):
        return write_report(shown, [run_in(baseline) for baseline in baselines])


def watch(run: AnyPath | Run, *, port: int = 0, baselines: Sequence[AnyPath | Run] = ()) -> Server:
    """Returns a server of the run's page, which shows the search as it goes on; to this machine alone.

        with watch("runs/first", port=8765) as server:
            print(server.url)
            server.serve_forever()

    Args:
        port: 0 takes one that is free.

    Raises:
        InputError: the directory holds no run, not even one that has just begun.
        ConfigError: the port is taken.
    """
    watched = Watched(run_in(run), [run_in(baseline) for baseline in baselines])
    watched.state()  # tells what is wrong with the run here, and not in the browser
    return Server(watched, port)
