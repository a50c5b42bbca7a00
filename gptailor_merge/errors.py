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
    ├── UnwritableError      the disk is full, or fails
    └── SearchError          the journal is unusable, or too many candidates failed
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from gptailor_merge.bounded_files import read_bounded
from gptailor_merge.visible_text import shortened, visible_line
from gptailor_merge.yaml_nodes import compose, line_of

KeyPath = tuple[str | int, ...]


MOST_SHOWN = 20
"""Problems of one input that its error lists."""


_BREAKS = re.compile(r"\s*[\r\n]\s*")


class TailorError(Exception):
    """The base of all errors of this package.

    Args:
        lines: what happened, mostly in one sentence. Names in it may come from strangers, so that breaks
            inside a line are taken away, and control characters are escaped.
    """

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(visible_line(" ".join(_BREAKS.split(line))) for line in lines))


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
        shown = self.problems[:MOST_SHOWN]
        root = _root_of(file) if file is not None and any(problem.path for problem in shown) else None
        lines = [self._line(problem, root) for problem in shown]
        if len(self.problems) > MOST_SHOWN:
            lines.append(f"and {len(self.problems) - MOST_SHOWN:,} more")
        super().__init__(*lines)

    def _line(self, problem: Problem, root: yaml.Node | None) -> str:
        place = ""
        if self.file is not None:
            line = line_of(root, problem.path) if problem.path else None
            place = f"{self.file}:{line}: " if line else f"{self.file}: "
        return shortened(place + (f"{problem.where}: " if problem.path else "") + problem.message)


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


class UnwritableError(RunError):
    """The disk is full, or fails."""


class SearchError(RunError):
    """The journal is unusable, or too many candidates failed."""


def _root_of(file: Path | str) -> yaml.Node | None:
    """Returns the nodes of a YAML file, or None if it cannot be read."""
    try:
        return compose(read_bounded(file).decode("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


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


@contextmanager
def errors_at(path: KeyPath) -> Iterator[None]:
    """Adds to errors where in the config their cause stands."""
    try:
        yield
    except InputError as error:
        raise ConfigError(Problem(path, str(error))) from None
