"""Lets pages link to files of the repository as they do on GitHub, and fills in the Python API.

MkDocs knows files below docs/ only. This hook, which MkDocs calls, takes every file that a page links to into
the site, at its path in the repository, and rewrites the links.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
LINK = re.compile(r"(\]\(|src=\")(?!https?:|#|mailto:)([^)\s\"#]+)")
API = re.compile(r"<!-- api: (\S+) -->.*?<!-- /api -->", re.DOTALL)
FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
"""Code, in which nothing is a link."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the README and, page by page, what pages link to outside docs/."""
    waiting = ["README.md", *(DOCS + file.src_uri for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        if files.get_file_from_path(_in_site(name)) is None:
            source = ROOT / name
            files.append(File.generated(config, _in_site(name), abs_src_path=str(source)))
        if not name.endswith(".md"):
            continue
        for _, link in LINK.findall(FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))):
            target = _target(name, link)
            if target not in seen and (ROOT / target).is_file():
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links of a page, and leaves the API to mkdocstrings."""
    site_name = page.file.src_uri
    name = _in_repository(site_name)
    above = PurePosixPath(site_name).parent

    def rewritten(match: re.Match[str]) -> str:
        return match[1] + os.path.relpath(_in_site(_target(name, match[2])), above)

    parts = FENCE.split(API.sub(r"::: \1", markdown))
    return "".join(part if index % 2 else LINK.sub(rewritten, part) for index, part in enumerate(parts))


def _target(name: str, link: str) -> str:
    """Returns the path in the repository of what a page there links to.

    A directory has the README that describes it: its own, or that of the nearest directory above.
    """
    target = Path(os.path.normpath(PurePosixPath(name).parent / link))
    while (ROOT / target).is_dir():
        if (ROOT / target / "README.md").is_file():
            return str(target / "README.md")
        target = target.parent
    return str(target)


def _in_site(name: str) -> str:
    return name.removeprefix(DOCS)


def _in_repository(site_name: str) -> str:
    return DOCS + site_name if (ROOT / DOCS / site_name).is_file() else site_name
