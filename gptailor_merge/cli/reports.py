"""`gptailor report` and `gptailor watch`: the commands that show a run."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[Path, typer.Argument(help="A run directory of gptailor-evolve.")]


Baselines = Annotated[
    list[Path] | None,
    typer.Option("--baseline", help="Another run of the same search config, drawn as a line; repeatable."),
]


Open = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(report)
    app.command()(watch)


def report(run: RunArgument, baselines: Baselines = None, opens: Open = False) -> None:
    """Write RUN/report.html: what a run has found, as a page that needs nothing else."""
    from gptailor_merge.report.page import write_report
    from gptailor_merge.runs.run import Run

    file = write_report(Run(run), [Run(other) for other in baselines or ()])
    typer.echo(f"report  {file}")
    if opens:
        webbrowser.open(file.resolve().as_uri())


def watch(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8765,
    baselines: Baselines = None,
    opens: Open = False,
) -> None:
    """Serve a run's page to this machine, and refresh it while the search goes on."""
    from gptailor_merge.report.watch import Server, Watched
    from gptailor_merge.runs.run import Run

    watched = Watched(Run(run), [Run(other) for other in baselines or ()])
    watched.state()  # what is wrong with the run is told here, and not in the browser
    with Server(watched, port) as server:
        typer.echo(f"{server.url}  (end with Ctrl-C)")
        if opens:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")
