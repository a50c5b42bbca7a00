"""Finds the texts in a user's directories: those to search on, and those to hold out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptailor_merge.calibration.text_files import KINDS, bare_name, data_files
from gptailor_merge.errors import ConfigError, DataError
from gptailor_merge.models.family import BASE_NAME

SEARCHED = ("calibration",)
"""Names of a directory whose texts are searched on."""


HELD_OUT = ("held-out", "held_out", "heldout")
"""Names of a directory whose texts are held out."""


@dataclass(frozen=True)
class NamedTexts:
    """The texts of a search.

    Attributes:
        searched: name -> file or directory that is searched on.
        held_out: name -> file or directory that is only reported on.
    """

    searched: Mapping[str, Path] = field(default_factory=dict)
    held_out: Mapping[str, Path] = field(default_factory=dict)


def texts_in(given: Sequence[str]) -> NamedTexts:
    """Returns the texts of files and directories.

    A directory with a directory `calibration` has its texts there, and those to hold out in `held-out`
    beside it; any other is searched on as a whole. In each of them every file is a text, and every directory.

    Args:
        given: each PATH, or NAME=PATH for one text.

    Raises:
        DataError: there is nothing to read.
        ConfigError: two texts have one name.
    """
    searched: dict[str, Path] = {}
    held_out: dict[str, Path] = {}
    for item in given:
        name, separator, rest = item.partition("=")
        if separator and not Path(item).exists():
            data_files(Path(rest))
            _add(searched, name, Path(rest))
            continue
        path = Path(item)
        inside = _first(path, SEARCHED)
        for place, texts in ((inside or path, searched), (_first(path, HELD_OUT), held_out)):
            for file in _entries(place) if place else ():
                _add(texts, bare_name(file), file)
    return NamedTexts(searched, held_out)


def teachers_of(texts: NamedTexts, members: Sequence[str], mapped: Mapping[str, str]) -> dict[str, str]:
    """Returns name of a text -> the member that teaches it, without those that the base teaches.

    Args:
        members: names of the variants; a text that has the name of one is taught by it.
        mapped: name of a text -> member, as the user says.

    Raises:
        ConfigError: the user names a text or a member that is not there.
    """
    for name, member in mapped.items():
        if name not in texts.searched:
            known = ", ".join(texts.searched) or "none"
            raise ConfigError(f"--teacher {name}={member}: no such text, found {name!r}; known are {known}")
        if member not in (BASE_NAME, *members):
            known = ", ".join((BASE_NAME, *members))
            raise ConfigError(f"--teacher {name}={member}: no such member; known are {known}")
    by_lower = {member.lower(): member for member in members}
    by_name = {name: by_lower[name.lower()] for name in texts.searched if name.lower() in by_lower}
    return {name: member for name, member in {**by_name, **mapped}.items() if member != BASE_NAME}


def _first(path: Path, names: Sequence[str]) -> Path | None:
    """Returns the first of the directories that is there."""
    return next((path / name for name in names if (path / name).is_dir()), None)


def _entries(path: Path) -> Iterator[Path]:
    """Yields a file itself, or the texts of a directory.

    Raises:
        DataError: there are none.
    """
    if not path.is_dir():
        data_files(path)
        yield path
        return
    readable = [entry for entry in sorted(path.iterdir()) if entry.name[0] != "." and _is_text(entry)]
    if not readable:
        raise DataError(f"{path}: the directory holds no texts; expected {KINDS}")
    yield from readable


def _is_text(entry: Path) -> bool:
    try:
        return bool(data_files(entry))
    except DataError:
        return False


def _add(texts: dict[str, Path], name: str, path: Path) -> None:
    if name in texts:
        raise ConfigError(f"{texts[name]} and {path} are both called {name!r}; name them: --data NAME={path}")
    texts[name] = path
