"""`gptailor report` and `gptailor watch`: a run as a page."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from gptailor_merge.cli import terminal
from gptailor_merge.cli.options import RunDirectory

Baselines = Annotated[
    list[Path] | None,
    typer.Option(
        "--baseline",
        metavar="RUN",
        help="Another run of the same search config, drawn as a line. May be given several times.",
    ),
]

Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(report)
    app.command()(watch)


def report(run: RunDirectory, baselines: Baselines = None, opens: Open = False) -> None:
    """Write RUN/report.html: a page on what the run has found, which needs nothing else."""
    from gptailor_merge.api.reports import report as write_report

    page = write_report(run, baselines=baselines or ())
    terminal.line(f"report  {page}")
    if opens:
        webbrowser.open(page.resolve().as_uri())


def watch(
    run: RunDirectory,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to serve the page on; 0 takes a free one.")
    ] = 8765,
    baselines: Baselines = None,
    opens: Open = False,
) -> None:
    """Serve a run's page to this machine, and refresh it while the search goes on."""
    from gptailor_merge.api.reports import watch as serve

    with serve(run, port=port, baselines=baselines or ()) as server:
        terminal.line(f"{server.url}  (end with Ctrl-C)")
        if opens:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            terminal.line()
