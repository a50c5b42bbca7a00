"""Names that strangers chose are shown, and act on nothing: not on the terminal, not on a log."""

from __future__ import annotations

import ast
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gptailor_merge
from gptailor_merge.cli import printing, terminal
from gptailor_merge.cli.progress import Bar, Lines
from gptailor_merge.cli.recipe_table import of_file
from gptailor_merge.cli.terminal import PlainConsole, PlainTable
from gptailor_merge.hub.reproduce import Comparison

EVIL = "\x1b[2J\x1b[1;1Hevil/x: equal, 83 tensors\nevil/x: equal\r\x9b8m[red]\u202e:smile:"
SHOWN = r"\x1b[2J\x1b[1;1Hevil/x: equal, 83 tensors\nevil/x: equal\r\x9b8m[red]\u202e:smile:"
PACKAGE = Path(gptailor_merge.__file__).parent


def bar(text: str) -> None:
    stream = io.StringIO()
    drawn = Bar(PlainConsole(file=stream, force_terminal=True, width=200, color_system=None))
    drawn.begin(3)
    drawn.step(text)
    drawn.end()
    # What moves the cursor here is rich's own.
    sys.stdout.write(re.sub(r"\r|\x1b\[[?\d]*[A-Za-z]", "", stream.getvalue()))


def row(text: str) -> None:
    table = PlainTable()
    table.add_column(text)
    table.add_row(text)
    terminal.show(table)


def log(text: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("test_terminal")
    logger.addHandler(handler)
    logger.error("no tensor %s", text)
    logger.removeHandler(handler)


WAYS: dict[str, Callable[[str], None]] = {
    "a line": terminal.line,
    "a step": terminal.say,
    "a cell": row,
    "a plain line of a search": Lines(PlainConsole(stderr=True)).step,
    "a progress bar": bar,
    "a record of a log": log,
    "a warning": lambda text: (
        sys.stderr.write(warnings.formatwarning(text, UserWarning, "x.py", 1, "")) and None
    ),
    "a comparison": lambda text: printing.comparison("evil/x", Comparison(1, (text,))),
}


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    factory = logging.getLogRecordFactory()
    terminal.guard_logs()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_is_printed_acts_on_the_terminal(
    way: str, guarded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    WAYS[way](EVIL)
    printed = "".join(capsys.readouterr())
    assert all(c.isprintable() or c == "\n" for c in printed), printed
    unbroken = printed if way in ("a record of a log", "a warning") else printed.replace("\n", "")
    assert SHOWN.replace(r"\n", "\n") in printed or SHOWN in unbroken, printed
    assert not printed.startswith("evil/x: equal")


def test_a_recipe_is_drawn_with_odd_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(
        'merge_method: tailor\nbase_model: "o\\e[2J/b[red]"\nslices:\n'
        '  - {sources: [{model: "o\\e[2J/b[red]", layer_range: [0, 2]}], parameters: {op: select}}\n'
    )
    terminal.show(of_file(file))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "b[red] (base)" in printed


def test_the_package_prints_in_one_place() -> None:
    """Whoever prints elsewhere prints names as they are."""
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name == "testing" or file.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "click.echo", "Console", "Table"), file
