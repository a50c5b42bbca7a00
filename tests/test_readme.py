"""What the pages for people say and can be checked without running it all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.zoo import ZOO

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"),
    *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]
ROOMS = "|".join(sorted(path.stem for path in (ROOT / "gptailor_merge").iterdir() if path.stem[0] != "_"))


def test_the_table_of_architectures_has_a_row_for_each_that_is_tested() -> None:
    """`python benchmarks/architectures.py --readme README.md` writes it."""
    table = README.split("<!-- architectures:begin -->")[1].split("<!-- architectures:end -->")[0]
    rows = dict(re.findall(r"^\| (\w+) \| .*? \| (\w+) \| .*\|$", table, flags=re.MULTILINE))
    assert rows == dict.fromkeys(ZOO, "right")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_links_to_are_there(page: str) -> None:
    """Also paths between back quotes that begin with a room."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for path in re.findall(rf"`((?:{ROOMS})/[\w./-]+\.py)`", text):
        assert (ROOT / "gptailor_merge" / path).exists(), path
