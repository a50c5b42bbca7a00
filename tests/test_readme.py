"""What the README says and can be checked without running it all."""

from __future__ import annotations

import re
from pathlib import Path

from tests.zoo import ZOO

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_of_architectures_has_a_row_for_each_that_is_tested() -> None:
    """`python benchmarks/architectures.py --readme README.md` writes it."""
    table = README.split("<!-- architectures:begin -->")[1].split("<!-- architectures:end -->")[0]
    rows = dict(re.findall(r"^\| (\w+) \| .*? \| (\w+) \| .*\|$", table, flags=re.MULTILINE))
    assert rows == dict.fromkeys(ZOO, "right")


def test_files_that_it_links_to_are_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
