"""Describes the models that a published model is made of: their public names, licences and languages.

A model on the Hub goes by its id, pinned to the commit that was read. A local directory goes by its name
alone, never by its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from gptailor_merge.documents import parse_yaml, read_text
from gptailor_merge.errors import ConfigError, FamilyError
from gptailor_merge.models.checkpoint import ModelId
from gptailor_merge.models.contents import commit_of

CARD = "README.md"


LOCAL = "./"
"""The prefix of a local directory's name in a published recipe; no Hub id begins like this."""


@dataclass(frozen=True)
class Licence:
    """A licence, as the metadata of cards names it.

    Attributes:
        key: one of the Hub's identifiers, such as apache-2.0; `other` comes with a name and a link.
    """

    key: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class ParentPart:
    """A model or a LoRA adapter, with what its own card says.

    Attributes:
        name: the Hub id, or the name of the directory.
        hub_id: None for a local directory.
        revision: the commit that was read; None where it is not known.
    """

    name: str
    hub_id: str | None
    revision: str | None
    licence: Licence | None
    languages: tuple[str, ...]

    @property
    def pinned(self) -> str:
        """The part as a published recipe names it."""
        if self.hub_id is None:
            return LOCAL + self.name
        return f"{self.hub_id}@{self.revision}" if self.revision else self.hub_id


@dataclass(frozen=True)
class Parent:
    """A member of a family.

    Attributes:
        member: the member's name in the family.
        model: the model as the run names it; it may be a path.
        parts: the model, and its adapter if it has one.
    """

    member: str
    model: str
    parts: tuple[ParentPart, ...]

    @property
    def name(self) -> str:
        """The member as a card names it."""
        return " + ".join(part.name for part in self.parts)

    @property
    def pinned(self) -> str:
        """The member as a published recipe names it."""
        return "+".join(part.pinned for part in self.parts)

    @property
    def unpinned(self) -> str:
        """The same without commits, which are not known before the models are read."""
        return "+".join(part.hub_id or LOCAL + part.name for part in self.parts)


def parents_of(members: Mapping[str, str]) -> tuple[Parent, ...]:
    """Describes the members of a family.

    Args:
        members: name -> model, as the config of a run has them; the base comes first.
    """
    models = {member: _parts(ModelId.parse(model)) for member, model in members.items()}
    directories = {part.path for parts in models.values() for part in parts if part.is_local}
    have_distinct_names = len({Path(path).name for path in directories}) == len(directories)
    parents = []
    for member, parts in models.items():
        names = [Path(part.path).name for part in parts]
        if not have_distinct_names:
            names = [member, f"{member}-adapter"][: len(parts)]
        described = (_describe(part, name) for part, name in zip(parts, names, strict=True))
        parents.append(Parent(member, members[member], tuple(described)))
    return tuple(parents)


def licence_of(parents: Iterable[Parent], chosen: str | None) -> Licence:
    """Returns the licence of a model that is made of these members.

    Args:
        chosen: the user's choice; None where the members must agree.

    Raises:
        ConfigError: nothing is chosen, and a member states no licence or the members state several.
    """
    stated = {part.name: part.licence for parent in parents for part in parent.parts}
    kinds = set(stated.values())
    if chosen is not None:
        matching = [kind for kind in kinds if kind is not None and kind.key == chosen]
        return matching[0] if len(matching) == 1 else Licence(chosen)
    silent = [name for name, licence in stated.items() if licence is None]
    if silent:
        raise ConfigError(
            f"no licence is stated by {', '.join(silent)}; expected one in the metadata of its {CARD}; read "
            "under what terms it may be passed on, and choose with --license, e.g. --license apache-2.0"
        )
    if len(kinds) > 1:
        licences = ", ".join(f"{name} has {_licence_name(licence)}" for name, licence in stated.items())
        raise ConfigError(
            f"the members' licences differ: {licences}; read which of them a model made of all members may "
            "have, and choose with --license"
        )
    (licence,) = kinds
    assert licence is not None
    return licence


def languages_of(parents: Iterable[Parent]) -> list[str]:
    """Returns every language that the members state, in their order."""
    stated = [language for parent in parents for part in parent.parts for language in part.languages]
    return list(dict.fromkeys(stated))


def _licence_name(licence: Licence | None) -> str:
    return "" if licence is None else licence.name or licence.key


def _parts(model: ModelId) -> Sequence[ModelId]:
    return (model.model, model.adapter) if model.adapter is not None else (model,)


def _describe(model: ModelId, directory_name: str) -> ParentPart:
    if model.is_local:
        stated = _metadata(Path(model.path) / CARD)
        return ParentPart(directory_name, None, None, _licence(stated), _languages(stated))
    revision = commit_of(model) or model.revision
    stated = _metadata(_card_on_the_hub(model.repo, revision))
    return ParentPart(model.repo, model.repo, revision, _licence(stated), _languages(stated))


def _card_on_the_hub(repo: str, revision: str | None) -> Path | None:
    try:
        return Path(hf_hub_download(repo, CARD, revision=revision))
    except (OSError, ValueError):  # the model has no card, or the card is neither cached nor within reach
        return None


def _metadata(card: Path | None) -> Mapping[str, Any]:
    """Returns the metadata of a card; empty where the card is missing or cannot be read."""
    if card is None or not card.is_file():
        return {}
    try:
        text = read_text(card, FamilyError)
        block = REGEX_YAML_BLOCK.search(text)
        stated = parse_yaml(block[2], FamilyError) if block else None
    except FamilyError:
        return {}
    return stated if isinstance(stated, Mapping) else {}


def _licence(stated: Mapping[str, Any]) -> Licence | None:
    key = stated.get("license")
    key = key[0] if isinstance(key, list) and len(key) == 1 else key
    if not isinstance(key, str) or not key:
        return None
    name, link = (_text(stated.get(key)) for key in ("license_name", "license_link"))
    return Licence(key.lower(), name, link)


def _languages(stated: Mapping[str, Any]) -> tuple[str, ...]:
    value = stated.get("language")
    languages = value if isinstance(value, list) else [value]
    return tuple(language for language in languages if isinstance(language, str))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
