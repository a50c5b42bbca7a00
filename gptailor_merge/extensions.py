"""Looks up named extensions: built into this package, or offered by other packages as entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from gptailor_merge.documents import suggest
from gptailor_merge.errors import InputError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name -> extension. Another package's module is imported when its extension is first asked for.

    Args:
        kind: the word for an extension in messages, e.g. "op".
        group: the group of entry points.
        built_in: name -> extension, in the order of messages.
        error: raised for a name that is unknown or offered twice, and for an entry point that cannot be
            imported.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, T], error: type[InputError]) -> None:
        self._kind, self._group, self._built_in, self._error = kind, group, built_in, error

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from (name for name in self._entry_points if name not in self._built_in)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._entry_points

    def __getitem__(self, name: str) -> T:
        offers = self._entry_points.get(name, [])
        if name in self._built_in and not offers:
            return self._built_in[name]
        if not offers:
            raise self._error(f"unknown {self._kind}, found {name!r}{suggest(name, self)}")
        if name in self._built_in or len(offers) > 1:
            values = ["gptailor-merge"] * (name in self._built_in) + [offer.value for offer in offers]
            raise self._error(
                f"several packages offer the {self._kind} {name!r} ({' and '.join(values)}); "
                "uninstall all but one"
            )
        (entry_point,) = offers
        try:
            extension: T = entry_point.load()
        except Exception as error:  # another package's module may raise anything
            package = entry_point.dist.name if entry_point.dist else "another package"
            raise self._error(
                f"the {self._kind} {name!r} of {package} cannot be imported from {entry_point.value}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return extension

    @property
    def _entry_points(self) -> Mapping[str, list[EntryPoint]]:
        return _entry_points(self._group, tuple(sys.path))


@lru_cache
def _entry_points(group: str, path: tuple[str, ...]) -> Mapping[str, list[EntryPoint]]:
    """Returns name -> the distinct entry points of that name that the packages on a path offer."""
    offers: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=group):
        if entry_point not in offers.setdefault(entry_point.name, []):
            offers[entry_point.name].append(entry_point)
    return offers
