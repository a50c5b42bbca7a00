"""Declares the arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]

Device = Annotated[str, typer.Option(help="Where models run: auto, cpu, cuda, cuda:N or mps.")]

BankPlace = Annotated[
    Literal["device", "host", "auto"],
    typer.Option(
        metavar="PLACE",
        help="Where the family's weights are kept: device, host, or auto, which takes the device if "
        "they fit there.",
    ),
]

License = Annotated[
    str | None,
    typer.Option(
        "--license", help="Licence of the model, e.g. apache-2.0. Default: the one that all members state."
    ),
]

Texts = Annotated[
    list[str],
    typer.Option(
        metavar="FILE...",
        help="Texts: .jsonl, .json, .txt, also with .gz, .parquet, or a directory of these; write "
        "[bold]NAME=FILE[/] to give one a name of its own.",
    ),
]

TeacherPairs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MEMBER",
        help="Who teaches a text. Default: the member that has its name, or else the base.",
    ),
]

Column = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Field or column that holds the text, or the messages of a conversation."
    ),
]

Tokens = Annotated[int, typer.Option(min=2, help="Tokens to take in all, shared evenly by the files.")]

SequenceLength = Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")]

TestSplit = Annotated[
    bool,
    typer.Option(
        "--allow-test-split", help="Allow searching on the test splits of tasks; every report says so."
    ),
]

Resume = Annotated[bool, typer.Option("--resume", help="Continue the run that --out holds.")]

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (merge_method: tailor).")]

ModelOrRecipe = Annotated[
    Path, typer.Argument(metavar="MODEL_OR_RECIPE", help="A recipe file, or a model directory.")
]

RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of gptailor-evolve.")]
