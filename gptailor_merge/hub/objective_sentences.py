"""Says in words what the numbers of a run were measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from gptailor_merge.objectives.config_types import DatasetConfig, is_path, source_in_words
from gptailor_merge.objectives.kinds import ObjectiveConfig
from gptailor_merge.scoring.measures import Items


def described(
    section: str, configs: Sequence[ObjectiveConfig], items: Sequence[Items], versions: Mapping[str, str]
) -> list[str]:
    """Returns a sentence for each objective of a section; those on items of tasks come last.

    Args:
        section: objectives, gates or held_out.
        configs: of the section.
        items: all that the run recorded.
        versions: library -> the version that the run used.
    """
    sentences = [config.describe() for config in configs if not config.has_items]
    recorded = [entry for entry in items if entry.section == section]
    for objective, entries in groupby(recorded, key=lambda entry: entry.objective):
        tasks = ", ".join(
            f"{entry.task} ({entry.split} split, {len(entry.ids):,} items)" for entry in entries
        )
        sentences.append(f"{objective} on {tasks}")
    if recorded:
        sentences[-1] += "".join(f"; {text}" for text in _shared_settings(configs, versions))
    return sentences


def _shared_settings(configs: Sequence[ObjectiveConfig], versions: Mapping[str, str]) -> Iterator[str]:
    """Yields what all objectives of a kind with items have in common."""
    for kind in dict.fromkeys(type(config) for config in configs if config.has_items):
        yield from kind.shared_settings([config for config in configs if type(config) is kind], versions)


def source_of(configs: Sequence[ObjectiveConfig], name: str) -> str | DatasetConfig | None:
    """Returns the texts of a name: a file's name, or a data set; None where there are none."""
    for config in configs:
        source = config.sources().get(name)
        if source is not None:
            if isinstance(source, DatasetConfig) and not is_path(source.dataset):
                return source
            return source_in_words(source)
    return None


def calibration_texts(configs: Sequence[ObjectiveConfig]) -> list[str]:
    """Returns the names of the texts that repairs are fitted to, unless the config names others."""
    return list(dict.fromkeys(name for config in configs if config.calibrates for name in config.sources()))
