"""Holds the kinds of objectives: those of this package, and those of others by entry point.

Another package adds a kind in its pyproject.toml; the name is the kind, the value its config class:

    [project.entry-points."gptailor_merge.objectives"]
    entropy = "my_package.entropy:EntropyConfig"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from gptailor_merge.documents import validated
from gptailor_merge.objectives.bounds import Bound, gate_class
from gptailor_merge.objectives.bytes import BytesConfig
from gptailor_merge.objectives.kinds import ObjectiveConfig
from gptailor_merge.objectives.kl import KLConfig
from gptailor_merge.objectives.kv_cache import KVCacheConfig
from gptailor_merge.objectives.latency import LatencyConfig
from gptailor_merge.objectives.parameter_count import ParametersConfig
from gptailor_merge.objectives.perplexity import PerplexityConfig
from gptailor_merge.objectives.repetition import RepetitionConfig
from gptailor_merge.objectives.tasks.task import TaskConfig

GROUP = "gptailor_merge.objectives"
"""The group of entry points."""


BUILT_IN: Mapping[str, type[ObjectiveConfig]] = {
    "kl": KLConfig,
    "perplexity": PerplexityConfig,
    "task": TaskConfig,
    "repetition": RepetitionConfig,
    "parameters": ParametersConfig,
    "bytes": BytesConfig,
    "kv_cache": KVCacheConfig,
    "prefill_latency": LatencyConfig,
    "decode_latency": LatencyConfig,
}


def known_kinds() -> tuple[str, ...]:
    """Returns the names of all kinds, with the built-in ones first.

    >>> known_kinds()[:3]
    ('kl', 'perplexity', 'task')
    """
    return (*BUILT_IN, *sorted(set(_installed()) - set(BUILT_IN)))


def config_class(kind: str) -> type[ObjectiveConfig]:
    """Returns the config class of a kind; a built-in kind comes before another package's of that name.

    Raises:
        ValueError: no such kind, or another package's that cannot be imported or lacks something.
    """
    if kind in BUILT_IN:
        return BUILT_IN[kind]
    installed = _installed()
    if kind not in installed:
        raise _unknown(kind)
    return _load(installed[kind])


def _unknown(kind: object) -> ValueError:
    return ValueError(f"expected a mapping with a kind of {', '.join(known_kinds())}, found {kind!r}")


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(entry: EntryPoint) -> type[ObjectiveConfig]:
    where = f"the kind {entry.name!r}, found as entry point {entry.value}"
    try:
        loaded = entry.load()
    except Exception as error:  # a package raises what it likes when it is imported
        raise ValueError(f"{where}, cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, ObjectiveConfig)):
        raise ValueError(f"{where}, is no subclass of gptailor_merge.objectives.kinds.ObjectiveConfig")
    missing = sorted(getattr(loaded, "__abstractmethods__", ()))
    if missing:
        raise ValueError(f"{where}, does not implement {', '.join(missing)}")
    if "weight" not in loaded.model_fields:
        raise ValueError(f"{where}, has no key `weight`")
    return loaded


def _reader(choose: Callable[[type[ObjectiveConfig]], type[ObjectiveConfig]]) -> BeforeValidator:
    """Returns a validator that reads a mapping as the class of its kind."""

    def read(value: Any) -> Any:
        if isinstance(value, ObjectiveConfig):
            return value
        kind = value.get("kind") if isinstance(value, Mapping) else value
        if not isinstance(value, Mapping) or not isinstance(kind, str):
            raise _unknown(kind)
        return validated(choose(config_class(kind)), value)

    return BeforeValidator(read)


ObjectiveConfigs = tuple[
    Annotated[SerializeAsAny[ObjectiveConfig], _reader(lambda config_class: config_class)], ...
]
"""The type of `objectives` and `held_out` in a config."""


GateConfigs = tuple[Annotated[SerializeAsAny[Bound], _reader(gate_class)], ...]
"""The type of `gates` in a config."""
