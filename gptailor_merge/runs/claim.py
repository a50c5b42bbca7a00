"""Decides whether a search may write a run directory: it must be the same search, on the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gptailor_merge.config import SearchConfig
from gptailor_merge.documents import read_yaml
from gptailor_merge.errors import ConfigError
from gptailor_merge.files import write_beside
from gptailor_merge.models.contents import MEMBER
from gptailor_merge.objectives.config_types import AUTO
from gptailor_merge.repair_config import FITTED
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.journal import Journal, snapshot
from gptailor_merge.runs.provenance import Inputs, Period, changed, continued, sentences
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.versions import environment


def refuse_other_runs(directory: Directory, *, resume: bool) -> None:
    """Refuses a directory that holds a run which is not to be continued.

    Raises:
        ConfigError: it holds one.
    """
    if directory.journal.exists() and not resume:
        raise ConfigError(
            f"{directory.path} already holds a run; continue it with --resume or choose another --out"
        )


def claim(config: SearchConfig, directory: Directory, contents: Inputs, *, resume: bool) -> bool:
    """Checks that a locked directory belongs to this config and these members; tells whether the run is new.

    Args:
        contents: what the members hold now, see models.contents.

    Raises:
        ConfigError: the directory holds a run and `resume` is not asked for, or holds another one.
    """
    refuse_other_runs(directory, resume=resume)
    is_new = not directory.journal.exists()
    if directory.config.exists() and not is_new:
        changed = SearchConfig.load(directory.config).differences(config)
        if changed:
            raise ConfigError(
                f"{directory.path} was begun with another config; {', '.join(changed)} differ. "
                "Resume with the config it was begun with, or choose another --out"
            )
    if not is_new:
        _check_members(directory, contents)
    directory.sweep()
    if is_new:
        write_beside(directory.config, config.to_yaml())
    return is_new


def as_begun(config: SearchConfig, directory: Directory) -> SearchConfig:
    """Returns the config with what a run recorded where the config leaves it open.

    That is how it repairs and tunes, and the size of its batches.
    """
    if not (directory.journal.exists() and directory.config.exists()):
        return config
    begun = SearchConfig.load(directory.config)
    repair, recorded = config.repair, begun.repair
    left_open = [key for key in FITTED if key not in repair.model_fields_set]
    repair = repair.model_copy(update={key: getattr(recorded, key) for key in left_open})
    tune = config.tune if config.tune.model_fields_set else begun.tune
    size = begun.batch_tokens if config.batch_tokens == AUTO else config.batch_tokens
    return config.model_copy(update={"repair": repair, "tune": tune, "batch_tokens": size})


def threads_before(directory: Directory) -> int | None:
    """Returns the threads that a run has computed with; None where it recorded none."""
    with snapshot(directory.journal) as journal:
        return journal.metadata().threads


def _check_members(run: Directory, contents: Inputs) -> None:
    """Refuses to go on with members that have changed, before a weight is loaded."""
    with snapshot(run.journal) as journal:
        begun, candidates = journal.metadata(), journal.counts().candidates
    if candidates and begun.inputs is not None:
        before = {name: value for name, value in begun.inputs.items() if name.startswith(MEMBER)}
        _refuse(run, changed(before, contents))


def _refuse(run: Directory, names: Sequence[str]) -> None:
    if names:
        raise ConfigError(
            f"{run.path} was begun with other models or data, and its scores would not belong together; "
            f"changed since then: {', '.join(names)}. Put back what it was begun with, or choose another "
            "--out"
        )


def describe(
    journal: Journal,
    run: Directory,
    axes: tuple[str, ...],
    baseline: Choice | None,
    inputs: Inputs,
    warnings: tuple[str, ...],
    threads: int | None,
    on_step: Callable[[str], None],
) -> None:
    """Writes what the run is about: a search or one baseline, its objectives, and what scores depend on.

    Raises:
        ConfigError: the run was begun as something else, or with other models or data.
    """
    asked = "" if baseline is None else str(baseline)
    begun, candidates = journal.metadata(), journal.counts().candidates
    if candidates and begun.baseline != asked:
        raise ConfigError(
            f"{journal.file} was begun by {begun.baseline or 'a search'}, not by {asked or 'a search'}"
        )
    if candidates and begun.inputs is not None:
        _refuse(run, changed(begun.inputs, inputs))
    before = begun.history or ()
    if candidates and begun.inputs is None:
        before = (Period(0, versions_at_begin(run), recorded=False),)
    history = continued(before, candidates, environment())
    if history != begun.history:
        journal.keep_held_out(())  # members are scored again, by what scores the recipes
    if candidates and begun.threads not in (None, threads):
        on_step(
            f"note: from now on {threads} threads compute instead of {begun.threads}; scores may differ from "
            "those before in their last digits"
        )
    told = sentences(history)
    for sentence in told if history != begun.history else ():
        on_step(f"note: {sentence}")
    journal.describe(
        replace(
            begun,
            baseline=asked,
            axes=axes,
            warnings=(*warnings, *told),
            inputs=inputs,
            history=history,
            threads=threads,
        )
    )


def versions_at_begin(run: Directory) -> dict[str, str]:
    """Returns the versions of the libraries when a run was begun, as its config records them."""
    document = read_yaml(run.config, ConfigError) if run.config.is_file() else None
    versions = document.get("environment") if isinstance(document, Mapping) else None
    if not isinstance(versions, Mapping):
        return environment() if document is None else {}
    return {str(name): str(number) for name, number in versions.items()}
