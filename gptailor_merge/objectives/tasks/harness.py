"""lm-eval's tasks, looked up and loaded once, and its language model."""

from __future__ import annotations

import copy
import difflib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gptailor_merge.errors import ConfigError, DataError, FamilyError, InputError
from gptailor_merge.models.chat_renderer import ChatRenderer
from gptailor_merge.models.configs import build, load_config
from gptailor_merge.models.nesting import loaded_text_of
from gptailor_merge.objectives.tasks.task_paths import start_paths_at_files

RANDOM_SEED, NUMPY_SEED = 0, 1234
"""lm-eval's defaults."""


def task_manager(names: Sequence[str], include_path: Path | None) -> Any:
    """Returns lm-eval's task manager, once the names are known: by itself it loads data before it complains.

    Args:
        names: of tasks or groups.
        include_path: a directory with further tasks.

    Raises:
        ConfigError: an unknown task, or no such directory.
    """
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(
            f"{include_path}: no such directory; expected one with tasks, YAML files of lm-eval"
        )
    state = _state_of(include_path)
    if include_path is not None:
        alone = _manager(include_path, state, include_defaults=False)
        if _are_all_in(alone.task_index, names):
            return alone
    manager = _manager(include_path, state, include_defaults=True)
    known = manager.all_tasks
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` lists them"
            raise ConfigError(f"lm-eval knows no task, found {name!r}; {hint}")
    return manager


_State = tuple[tuple[str, int], ...]
"""Paths and times of the files in a directory."""


def _state_of(directory: Path | None) -> _State:
    files = sorted(filter(Path.is_file, directory.rglob("*"))) if directory is not None else []
    return tuple((str(file), file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=4)
def _manager(include_path: Path | None, state: _State, *, include_defaults: bool) -> Any:
    """Makes a task manager; reading the thousands of files that come with lm-eval takes seconds."""
    from lm_eval.tasks import TaskManager  # takes seconds, too

    manager = TaskManager(include_path=include_path, include_defaults=include_defaults)
    if include_path is not None:
        start_paths_at_files(manager, include_path)
    return manager


def _are_all_in(index: Mapping[str, Any], names: Sequence[Any]) -> bool:
    """Tells whether an index has tasks, and everything that groups consist of."""
    for name in names:
        entry = index.get(name) if isinstance(name, str) else None
        kind = entry.kind.name if entry is not None else None
        members = entry.cfg.get("task") if entry is not None and kind == "GROUP" else ()
        if kind not in ("TASK", "GROUP") or not isinstance(members, (list, tuple)):
            return False
        if not _are_all_in(index, members):
            return False
    return True


def load_tasks(tasks: tuple[str, ...], include_path: Path | None) -> Mapping[str, Any]:
    """Returns task -> lm-eval's task, with groups resolved. They are shared: set up a copy, see copied.

    Raises:
        ConfigError: see task_manager.
        DataError: the data cannot be loaded.
    """
    return _load(tasks, include_path, _state_of(include_path))


@lru_cache(maxsize=16)
def _load(tasks: tuple[str, ...], include_path: Path | None, state: _State) -> Mapping[str, Any]:
    manager = task_manager(tasks, include_path)
    with errors_of(", ".join(tasks)), seeded():
        loaded: Mapping[str, Any] = manager.load(list(tasks))["tasks"]
        return loaded


def copied(task: Any) -> Any:
    """Returns a copy of a task that may be set up."""
    duplicate = copy.copy(task)
    for name in ("_config", "fewshot_cfg", "sampler"):
        if hasattr(duplicate, name):
            setattr(duplicate, name, copy.copy(getattr(duplicate, name)))
    return duplicate


@lru_cache(maxsize=1)
def harness_model_class() -> Any:
    """Returns lm-eval's class of language models, with chat templates rendered under limits."""
    from lm_eval.models.huggingface import HFLM

    class BoundedChats(HFLM):  # type: ignore[misc]
        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            """Renders a conversation; like lm-eval, without the system's messages if these are refused."""
            if not hasattr(self, "chat_renderer"):
                self.chat_renderer = ChatRenderer(self.tokenizer)
            options = {
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": not add_generation_prompt,
                **self.chat_template_args,
            }
            try:
                return self.chat_renderer.render(chat_history, **options)
            except FamilyError:
                others = [message for message in chat_history if message["role"] != "system"]
                if len(others) == len(chat_history):
                    raise
                return self.chat_renderer.render(others, **options)

    return BoundedChats


def encoder(directory: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Returns lm-eval's language model without weights, which turns requests into tokens as lm-eval does.

    Args:
        directory: of the model, for its config.
    """

    class Encoder(harness_model_class()):  # type: ignore[misc]
        recorded: list[tuple[list[int], list[int]]]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            self.recorded += [(context, continuation) for _, context, continuation in requests]
            return [(0.0, False)] * len(requests)

    config = load_config(directory)
    with torch.device("meta"):
        model = build(config)
    # lm-eval looks for the longest context in the config itself, not in the language model's.
    text = loaded_text_of(config)
    longest = None if text is config else getattr(text, "max_position_embeddings", None)
    return Encoder(pretrained=model, tokenizer=tokenizer, max_length=longest)


@contextmanager
def errors_of(names: str) -> Iterator[None]:
    """Turns whatever a task's data and its own code raise into a DataError that names the tasks."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise DataError(f"{names}: {type(error).__name__}: {error}") from error


@contextmanager
def seeded() -> Iterator[None]:
    """Seeds the random numbers of tasks as lm-eval does, and puts everyone else's back afterwards."""
    before = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
