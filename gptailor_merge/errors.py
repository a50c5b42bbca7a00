"""The errors that this package raises on purpose.

TailorError
├── InputError             the input is wrong; nothing was written              (exit code 2)
│   ├── RecipeError          a recipe
│   ├── ConfigError          a search config, or an option on the command line
│   ├── FamilyError          models that do not fit together, or cannot be read
│   └── DataError            a text file to score on
└── RunError               the input was right and the work failed              (exit code 1)
    ├── MergeFailedError     mergekit could not merge, or the written model is not sound
    ├── ScoringError         a candidate could not be composed or scored
    ├── HubError             the Hub refused, failed, or could not be reached
    └── SearchError          the journal is unusable, or too many candidates failed
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

KeyPath = tuple[str | int, ...]


class TailorError(Exception):
    """The base of all errors of this package."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One mistake in an input.

    Attributes:
        path: keys and list indices that lead to the mistake; empty for the input as a whole.
        message: a sentence that says what was found and what would be right.
    """

    path: KeyPath
    message: str

    @property
    def where(self) -> str:
        """The key path as people write it.

        >>> Problem(("slices", 2, "parameters", "method"), "is missing").where
        'slices[2].parameters.method'
        """
        text = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.path)
        return text.removeprefix(".")


class InputError(TailorError):
    """The user's input is wrong.

    Args:
        problems: one or more problems, or a sentence that says what is wrong.
        file: the YAML file that holds them; each message then begins with the file and, where the key can
            be located, its line.
    """

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[Problem], *, file: Path | str | None = None):
        if isinstance(problems, str):
            problems = [Problem((), problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: Sequence[Problem] = tuple(problems)
        self.file = file
        super().__init__("\n".join(self._line(problem) for problem in self.problems))

    def _line(self, problem: Problem) -> str:
        place = ""
        if self.file is not None:
            line = _line_number(self.file, problem.path) if problem.path else None
            place = f"{self.file}:{line}: " if line else f"{self.file}: "
        return place + (f"{problem.where}: " if problem.path else "") + problem.message


class RecipeError(InputError):
    """A recipe is wrong."""


class ConfigError(InputError):
    """A search config or an option is wrong."""


class FamilyError(InputError):
    """Models do not fit together, or cannot be read."""


class DataError(InputError):
    """A text file to score on is wrong."""


class RunError(TailorError):
    """The input was right and the work failed."""


class MergeFailedError(RunError):
    """mergekit could not merge, or the written model is not sound."""


class ScoringError(RunError):
    """A candidate could not be composed or scored."""


class HubError(RunError):
    """The Hub refused, failed, or could not be reached."""


class SearchError(RunError):
    """The journal is unusable, or too many candidates failed."""


def _line_number(file: Path | str, path: KeyPath) -> int | None:
    """Returns the 1-based line of a key path in a YAML file; an absent key has its nearest parent's line."""
    try:
        node = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if node is None:
        return None
    line = node.start_mark.line
    for key in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if pair[0].value == str(key)]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


@contextmanager
def errors_in(file: Path | str | None) -> Iterator[None]:
    """Adds the file's name to the input errors that are raised inside the block."""
    try:
        yield
    except InputError as error:
        raise type(error)(error.problems, file=error.file or file) from None


def log_warning(sentence: str) -> None:
    """Logs a sentence about what is sound and may surprise; Python shows it unless the program says else."""
    logging.getLogger("gptailor_merge").warning("%s", sentence)
