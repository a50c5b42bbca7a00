"""Options that take several values, as the commands themselves declare them."""

from __future__ import annotations

import pytest

from gptailor_merge.cli.app import app, evolve_app
from gptailor_merge.cli.lists import spread


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("score M --data a b --tokens 9", "score M --data a --data b --tokens 9"),
        ("score M --data a --data b", "score M --data a --data b"),
        ("eval M --tasks a b --json", "eval M --tasks a --tasks b --json"),
        ("recipe import F --candidates a b --out O", "recipe import F --candidates a --candidates b --out O"),
        ("report R --baseline a b", "report R --baseline a b"),
        ("reproduce U/N --member a=b c", "reproduce U/N --member a=b c"),
        ("baseline show C --out O", "baseline show C --out O"),
        ("--version", "--version"),
    ],
)
def test_values_follow_their_option(given: str, written: str) -> None:
    assert spread(app, given.split()) == written.split()


def test_a_program_without_commands_has_lists_as_well() -> None:
    given = "C --out O --start a b --report-to trackio wandb --resume"
    written = "C --out O --start a --start b --report-to trackio --report-to wandb --resume"
    assert spread(evolve_app, given.split()) == written.split()
