"""Holds the kinds of objectives: those of this package, and those of others by entry point.

Another package adds a kind in its pyproject.toml; the name is the kind, the value its config class:

    [project.entry-points."gptailor_merge.objectives"]
    entropy = "my_package.entropy:EntropyConfig"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from gptailor_merge.documents import validated
from gptailor_merge.errors import ConfigError
from gptailor_merge.extensions import Registry
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


KINDS: Registry[type[ObjectiveConfig]] = Registry("kind", GROUP, BUILT_IN, ConfigError)


def config_class(kind: str) -> type[ObjectiveConfig]:
    """Returns the config class of a kind.

    Raises:
        ValueError: no such kind, or another package's that cannot be imported or lacks something.
    """
    if kind not in KINDS:
        raise _unknown(kind)
    try:
        chosen = KINDS[kind]
    except ConfigError as error:
        raise ValueError(f"found {kind!r}, but {error}") from error
    lack = _lack(chosen)
    if lack:
        raise ValueError(f"found the kind {kind!r}, which {lack}")
    return chosen


def _unknown(kind: object) -> ValueError:
    return ValueError(f"expected a mapping with a kind of {', '.join(KINDS)}, found {kind!r}")


def _lack(candidate: object) -> str:
    """Says what keeps another package's class from being a kind; empty where nothing does."""
    if not (isinstance(candidate, type) and issubclass(candidate, ObjectiveConfig)):
        return "is no subclass of gptailor_merge.objectives.kinds.ObjectiveConfig"
    missing = sorted(getattr(candidate, "__abstractmethods__", ()))
    if missing:
        return f"does not implement {', '.join(missing)}"
    return "" if "weight" in candidate.model_fields else "has no key `weight`"


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
