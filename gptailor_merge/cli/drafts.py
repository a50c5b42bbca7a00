"""`gptailor init`: writes a search config for a family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptailor_merge.cli import printing, terminal
from gptailor_merge.cli.options import BankPlace, Device, TeacherPairs


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(init)


def init(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model, a directory or a Hub id.")],
    variants: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VARIANT",
            help="Finetunes of it: directories, Hub ids or adapters, each also as NAME=MODEL.",
        ),
    ] = None,
    target: Annotated[
        float,
        typer.Option(
            min=0, help="Share of the parameters that the pruned model keeps at most, or a number of layers."
        ),
    ] = 0.75,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR...",
            help="Directories or files of texts. Every file is a text of its own; those in calibration/ "
            "are searched on, and those in held-out/ reported. Default: WikiText-2 of the Hub.",
        ),
    ] = None,
    teacher: TeacherPairs = None,
    out: Annotated[Path, typer.Option(help="The search config to write.")] = Path("search.yml"),
    device: Device = "auto",
    bank: BankPlace = "auto",
) -> None:
    """Write a search config for a family, from its configs and headers, and say what the search will take."""
    from gptailor_merge.api.drafts import draft
    from gptailor_merge.api.library_logs import quiet_libraries

    quiet_libraries()
    drafted = draft(
        base,
        variants or (),
        out=out,
        target=target,
        data=data or (),
        teachers=teacher or (),
        device=device,
        bank=bank,
    )
    printing.forecast(drafted.expected)
    if not drafted.config.held_out:
        printing.warning(
            "nothing is held out: the result will have no score on texts that it was not searched on; "
            "a directory of texts called held-out, beside calibration, is reported on"
        )
    terminal.line(f"{drafted.file} is written; look at it (--dry-run tells the time), and search with")
    terminal.line(f"  {drafted.command}")
