"""Extensions that other packages offer by entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from gptailor_merge.errors import ConfigError, KeyPath, Problem


def offered(group: str) -> list[str]:
    """Return the names that other packages offer in an entry-point group, sorted."""
    return sorted({entry_point.name for entry_point in entry_points(group=group)})


def load(group: str, name: str, path: KeyPath = ()) -> object:
    """Import what other packages offer by a name.

    Args:
        path: where a config names it, for error messages.

    Raises:
        ConfigError: several packages offer it, or it cannot be imported.
    """
    # The same package may be found twice, as where its source tree is on the path as well.
    offers = {entry_point.value: entry_point for entry_point in entry_points(group=group, name=name)}
    if len(offers) > 1:
        message = f"several packages offer {name!r}, {' and '.join(offers)}; uninstall all but one"
        raise ConfigError(Problem(path, message))
    (entry_point,) = offers.values()
    try:
        return entry_point.load()
    except Exception as error:  # the code of another package may raise anything while it is imported
        message = f"cannot import {name!r} from {_origin(entry_point)}: {type(error).__name__}: {error}"
        raise ConfigError(Problem(path, message)) from error


def _origin(entry_point: EntryPoint) -> str:
    package = f" of the package {entry_point.dist.name}" if entry_point.dist else ""
    return f"{entry_point.value}{package}"
