"""The directory that is uploaded: model, tokenizer, recipe with its files, card, pictures, record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from huggingface_hub import get_token

from gptailor_merge.checking.soundness import examine
from gptailor_merge.composing.adapting import CONFIG_FILE, public_config
from gptailor_merge.errors import ConfigError, MergeFailedError
from gptailor_merge.files import staging
from gptailor_merge.host.materialize import WRITTEN_FILES, is_of
from gptailor_merge.host.names_and_commands import RECIPE
from gptailor_merge.hub.card import card_of
from gptailor_merge.hub.parents import CARD
from gptailor_merge.hub.release import ADAPTER, GAINS, MAPS, RECORD, Release
from gptailor_merge.report.pictures import draw_pictures
from gptailor_merge.report.view import view
from gptailor_merge.runs.directory import Directory
from gptailor_merge.runs.redaction import WEIGHTS, refuse_private

PICTURES = "pictures"
"""The directory of the pictures, beside the card."""


def check_model(run: Directory) -> None:
    """Refuses a model that is not the run's, or that `gptailor check` does not find sound.

    Raises:
        ConfigError: there is no model, or it was made from another recipe.
        MergeFailedError: it is not sound; the message says what is wrong.
    """
    if not is_of(run.model, run.best):
        lack = "is not the model of" if run.model.exists() else "is missing; it is to be the model of"
        raise ConfigError(
            f"{run.model} {lack} {run.best}; write it with  gptailor merge {run.best} {run.model}"
            + ("  after removing the old one" if run.model.exists() else "")
        )
    failures = [finding for finding in examine(run.model).findings if finding.verdict == "fail"]
    if failures:
        reasons = "; ".join(f"{failure.name}: {failure.sentence}" for failure in failures)
        raise MergeFailedError(f"{run.model} is not sound and was not published: {reasons}")


def bundle(release: Release, repo_id: str) -> Path:
    """Writes the directory, replacing an older one. Weights are linked to the run's where that works.

    Raises:
        MergeFailedError: a file names a path of this machine, or holds the token.
    """
    run = release.run
    out = run.hub
    leftovers = (*WRITTEN_FILES, f"{MAPS}/*", f"{GAINS}/*", f"{ADAPTER}/*", f"{PICTURES}/*")
    with staging(out, marker=RECORD, leftovers=leftovers) as directory:
        for file in sorted(run.model.iterdir()):
            if file.name not in (RECIPE, CARD) and file.is_file():
                _place(file, directory / file.name)
        (directory / RECIPE).write_text(release.recipe.to_yaml(), encoding="utf-8")
        for name, file in release.files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, directory / name)
        if release.adapter is not None:
            text = public_config(release.adapter)
            (directory / ADAPTER / CONFIG_FILE).write_text(text, encoding="utf-8")
        (directory / RECORD).write_text(release.record_text(), encoding="utf-8")
        pictures = draw_pictures(view(release.source), directory / PICTURES)
        card_of(release, repo_id, pictures).save(directory / CARD)
        models = (Path(model) for model in release.source.models.values())
        refuse_private(directory, (run.path.resolve(), *models), get_token())
    return out


def _place(file: Path, destination: Path) -> None:
    """Links weights where that works, and copies the rest, which is small and may be edited by hand."""
    if file.match(WEIGHTS):
        try:
            os.link(file.resolve(), destination)
        except OSError:
            pass  # another file system, or one without links
        else:
            return
    shutil.copyfile(file, destination)
