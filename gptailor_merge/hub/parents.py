"""The models that a published one is made of: what it calls them, their licences and languages.

A model on the Hub is called by its id and pinned to the commit that was read; a local directory by its
name alone, never by its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load

from gptailor_merge.errors import ConfigError
from gptailor_merge.models.checkpoint import ModelId

CARD = "README.md"


LOCAL = "./"
"""What stands before a local directory's name in a published recipe: no Hub id begins so."""


@dataclass(frozen=True)
class Licence:
    """A licence as the metadata of cards names it.

    Attributes:
        key: one of the Hub's identifiers, e.g. apache-2.0; `other` has a name and a link.
    """

    key: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Part:
    """A model or a LoRA adapter, with what its own card says.

    Attributes:
        name: its Hub id, or the name of its directory.
        hub_id: where it is on the Hub, or None.
        revision: the commit that was read, where that is known.
    """

    name: str
    hub_id: str | None
    revision: str | None
    licence: Licence | None
    languages: tuple[str, ...]

    @property
    def pinned(self) -> str:
        """In a published recipe."""
        if self.hub_id is None:
            return LOCAL + self.name
        return f"{self.hub_id}@{self.revision}" if self.revision else self.hub_id


@dataclass(frozen=True)
class Parent:
    """A member of a family.

    Attributes:
        member: what the family calls it.
        model: as the run names it; may be a path.
        parts: the model, and its adapter if it has one.
    """

    member: str
    model: str
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """For people."""
        return " + ".join(part.name for part in self.parts)

    @property
    def pinned(self) -> str:
        """In a published recipe."""
        return "+".join(part.pinned for part in self.parts)

    @property
    def unpinned(self) -> str:
        """The same without commits: it does not change before they are known."""
        return "+".join(part.hub_id or LOCAL + part.name for part in self.parts)


def parents_of(members: Mapping[str, str]) -> tuple[Parent, ...]:
    """The members of a family.

    Args:
        members: name -> model, as a run's config has them, the base first.
    """
    models = {member: _parts(ModelId.parse(model)) for member, model in members.items()}
    directories = {part.path for parts in models.values() for part in parts if part.is_local}
    told_apart = len({Path(path).name for path in directories}) == len(directories)
    found = []
    for member, parts in models.items():
        names = [Path(part.path).name for part in parts]
        if not told_apart:
            names = [member, f"{member}-adapter"][: len(parts)]
        made = (_part(part, name) for part, name in zip(parts, names, strict=True))
        found.append(Parent(member, members[member], tuple(made)))
    return tuple(found)


def licence_of(parents: Iterable[Parent], chosen: str | None) -> Licence:
    """The licence that a model made of these has.

    Args:
        chosen: by the user; else the members must agree.

    Raises:
        ConfigError: a member states none, or they state several.
    """
    stated = {part.name: part.licence for parent in parents for part in parent.parts}
    kinds = set(stated.values())
    if chosen is not None:
        same = [kind for kind in kinds if kind is not None and kind.key == chosen]
        return same[0] if len(same) == 1 else Licence(chosen)
    silent = [name for name, licence in stated.items() if licence is None]
    if silent:
        raise ConfigError(
            f"no licence is stated by {', '.join(silent)}; expected one in the metadata of its {CARD}; read "
            "under what terms it may be passed on, and choose with --license, e.g. --license apache-2.0"
        )
    if len(kinds) > 1:
        said = ", ".join(f"{name} has {_described(licence)}" for name, licence in stated.items())
        raise ConfigError(
            f"the members' licences differ: {said}; read which of them a model made of all may have, and "
            "choose with --license"
        )
    (licence,) = kinds
    assert licence is not None
    return licence


def languages_of(parents: Iterable[Parent]) -> list[str]:
    """All that the members state, in their order."""
    stated = [language for parent in parents for part in parent.parts for language in part.languages]
    return list(dict.fromkeys(stated))


def _described(licence: Licence | None) -> str:
    return "" if licence is None else licence.name or licence.key


def _parts(model: ModelId) -> Sequence[ModelId]:
    return (model.model, model.adapter) if model.adapter is not None else (model,)


def _part(model: ModelId, directory_name: str) -> Part:
    if model.is_local:
        stated = _metadata(Path(model.path) / CARD)
        return Part(directory_name, None, None, _licence(stated), _languages(stated))
    revision = _commit(model) or model.revision
    stated = _metadata(_card_on_the_hub(model.repo, revision))
    return Part(model.repo, model.repo, revision, _licence(stated), _languages(stated))


def _commit(model: ModelId) -> str | None:
    """The commit of what is in the cache, which is what was merged."""
    for file in ("config.json", "adapter_config.json"):
        try:
            cached = try_to_load_from_cache(model.repo, file, revision=model.revision)
        except HFValidationError:
            return None
        if isinstance(cached, str):
            return Path(cached).parent.name  # snapshots/COMMIT/config.json
    return None


def _card_on_the_hub(repo: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(repo, CARD, revision=revision))
    except (OSError, ValueError):  # there is none, or it cannot be reached and is not in the cache
        return None


def _metadata(card: Path | None) -> Mapping[str, Any]:
    """The metadata of a card; nothing where there is no card, or none that can be read."""
    if card is None or not card.is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _licence(stated: Mapping[str, Any]) -> Licence | None:
    key = stated.get("license")
    key = key[0] if isinstance(key, list) and len(key) == 1 else key
    if not isinstance(key, str) or not key:
        return None
    name, link = (_text(stated.get(f"license_{which}")) for which in ("name", "link"))
    return Licence(key.lower(), name, link)


def _languages(stated: Mapping[str, Any]) -> tuple[str, ...]:
    found = stated.get("language")
    listed = found if isinstance(found, list) else [found]
    return tuple(language for language in listed if isinstance(language, str))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
