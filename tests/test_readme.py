"""What the pages for people say and can be checked without running it all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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
def test_files_that_a_page_names_are_there(page: str) -> None:
    """Links, and paths between back quotes, from the root or from the package."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:gptailor_merge|tests|docs|benchmarks|recipes)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(rf"`((?:{ROOMS})/[\w./-]+\.py)`", text):
        assert (ROOT / "gptailor_merge" / path).exists(), path


def test_the_extension_that_contributing_shows_passes_its_contract(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", text, flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["my_package/depth.py", "pyproject.toml", "tests/test_depth.py"]
    for name, block in blocks:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(block)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    entry_points = blocks[1][1].replace("project.entry-points.", "").replace('"', "")
    (info / "entry_points.txt").write_text(entry_points)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b\d\d? passed", done.stdout), done.stdout
