"""Packages of other people, as pip leaves them in site-packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(site: Path, package: str, entry_points: str, modules: Mapping[str, str]) -> Path:
    """Writes an installed package and returns the directory that Python must look in.

    Args:
        entry_points: the text of `entry_points.txt`.
        modules: name -> its text.
    """
    information = site / f"{package.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(entry_points)
    for name, text in modules.items():
        (site / f"{name}.py").write_text(text)
    return site
