"""The file beside a healed recipe that says how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from gptailor_merge.bounded_files import read_bounded
from gptailor_merge.documents import Frozen, explain, json_text
from gptailor_merge.errors import ConfigError
from gptailor_merge.files import write_beside
from gptailor_merge.recipe.recipe import Recipe

FACTS = "healed.json"
"""The name of the file."""


MatchShare = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole."""


class HealingFacts(Frozen):
    """A record of how a model was healed, and at what cost. Later versions may write more keys.

    Attributes:
        method: "lora" for an adapter, "full" for all weights.
        texts: name of the training texts -> their digest.
        tokens: tokens trained on, repeated ones included.
        seconds: of training.
        device: the name of the device.
        teachers: name of the texts -> name of the member that taught them; empty for plain fine-tuning.
        teachers_in_8bit: whether the teachers ran in 8 bits.
        rank: of the adapter; None for all weights.
        generation: name of a task whose answers are generated -> the shares that match exactly, of the
            model as it was and as it is.
    """

    model_config = ConfigDict(extra="ignore")

    method: Literal["lora", "full"]
    texts: Mapping[str, str]
    tokens: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    device: str
    teachers: Mapping[str, str] = {}
    teachers_in_8bit: bool = False
    rank: Annotated[int, Field(ge=1)] | None = None
    generation: Mapping[str, tuple[MatchShare, MatchShare]] = {}

    def sentence(self) -> str:
        """Returns all of it in a sentence, with names and no paths."""
        what = "All weights were" if self.method == "full" else "The adapter was"
        sets = ", ".join(map(_name, self.texts))
        by_teacher: dict[str, list[str]] = {}
        for texts, teacher in self.teachers.items():
            by_teacher.setdefault(_name(teacher), []).append(_name(texts))
        taught = " and ".join(f"{teacher} ({', '.join(names)})" for teacher, names in by_teacher.items())
        return (
            f"{what} trained on {self.tokens:,} tokens of {sets}"
            f"{f', taught by {taught},' if taught else ''}"
            f"{' in 8 bits,' if self.teachers_in_8bit else ''} in {self.seconds:,.0f} s on {self.device}"
            f"{self._generated()}"
        )

    def _generated(self) -> str:
        """Returns the end of the sentence on generated answers; nothing where none were scored."""
        changes = ", ".join(
            f"{_name(task)} from {before:.1%} to {after:.1%}"
            for task, (before, after) in self.generation.items()
        )
        return changes and f"; generated answers that match exactly changed in {changes}"

    def to_public(self) -> dict[str, Any]:
        """Returns the content of the file with names in the place of paths."""
        return {
            **self._document(),
            "texts": {_name(name): digest for name, digest in self.texts.items()},
            "teachers": {_name(texts): _name(teacher) for texts, teacher in self.teachers.items()},
        }

    def write(self, directory: Path) -> None:
        """Writes the file beside a recipe."""
        text = json_text(self._document(), indent=1, ensure_ascii=False)
        write_beside(directory / FACTS, text + "\n")

    def _document(self) -> dict[str, Any]:
        rare = {"generation": self.generation, "teachers_in_8bit": self.teachers_in_8bit}
        empty = {name for name, value in rare.items() if not value}
        return self.model_dump(exclude_none=True, exclude=empty)


def facts_on(recipe: Recipe, directory: Path) -> HealingFacts | None:
    """Returns the facts on a recipe that lies in a directory; None where there are none.

    A recipe without an adapter was not healed by one, whatever lies beside it.

    Raises:
        ConfigError: the file cannot be read.
    """
    facts = facts_in(directory)
    if facts is None or facts.method == "full" or recipe.parameters.adapter is not None:
        return facts
    return None


def facts_in(directory: Path) -> HealingFacts | None:
    """Returns the facts that lie in a directory; None where there are none.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = directory / FACTS
    try:
        return HealingFacts.model_validate_json(read_bounded(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise ConfigError(explain(error, HealingFacts), file=file) from None


def _name(text: str) -> str:
    """Returns the last part of a path, on any system, and other names as they are."""
    return PureWindowsPath(text).name or text
