"""The directory that is uploaded: weights, config, tokenizer, recipe and its maps, card, pictures, record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import get_token
from safetensors import safe_open

from gptailor_merge.checking.soundness import examine
from gptailor_merge.errors import ConfigError, MergeFailedError
from gptailor_merge.files import staging
from gptailor_merge.host.materialize import is_of
from gptailor_merge.host.mentions import RECIPE
from gptailor_merge.hub.card import card_of
from gptailor_merge.hub.parents import CARD
from gptailor_merge.hub.release import RECORD, Release
from gptailor_merge.report.pictures import draw_pictures
from gptailor_merge.runs.directory import RunDirectory

DIRECTORY = "hub"
"""In the run directory."""


PICTURES = "pictures"


WEIGHTS = "*.safetensors"


def check_model(run: RunDirectory) -> None:
    """Refuse a model that is not the run's, or not sound by `gptailor check`.

    Raises:
        ConfigError: there is none, or it is of another recipe.
        MergeFailedError: it is not sound; says what is wrong.
    """
    if not is_of(run.model, run.best):
        lack = "is not the model of" if run.model.exists() else "is missing; it is to be the model of"
        raise ConfigError(
            f"{run.model} {lack} {run.best}; write it with  gptailor merge {run.best} {run.model}"
            + ("  after removing the old one" if run.model.exists() else "")
        )
    found = [finding for finding in examine(run.model).findings if finding.verdict == "fail"]
    if found:
        said = "; ".join(f"{finding.name}: {finding.sentence}" for finding in found)
        raise MergeFailedError(f"{run.model} is not sound and was not published: {said}")


def bundle(release: Release, repo_id: str) -> Path:
    """Write the directory, replacing an older one; weights are links to the run's where links can be.

    Raises:
        MergeFailedError: something in it names a path of this machine, or a token.
    """
    run = release.run
    out = run.path / DIRECTORY
    with staging(out) as directory:
        for file in sorted(run.model.iterdir()):
            if file.name not in (RECIPE, CARD) and file.is_file():
                _place(file, directory / file.name)
        (directory / RECIPE).write_text(release.recipe.to_yaml(), encoding="utf-8")
        for name, file in release.maps.items():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, directory / name)
        (directory / RECORD).write_text(release.record_text(), encoding="utf-8")
        pictures = draw_pictures(run, directory / PICTURES)
        card_of(release, repo_id, pictures).save(directory / CARD)
        _refuse_secrets(directory, _secrets(release))
    return out


def _place(file: Path, there: Path) -> None:
    """Weights are not copied where they need not be; what is small may be edited by hand."""
    if file.match(WEIGHTS):
        try:
            os.link(file.resolve(), there)
        except OSError:
            pass  # another file system, or none that has links
        else:
            return
    shutil.copyfile(file, there)


def _secrets(release: Release) -> list[str]:
    """Texts that nothing public may hold: the token, and paths of this machine."""
    paths = [Path.home(), Path.cwd(), release.run.path.resolve()]
    paths += [Path(parent.model) for parent in release.family if Path(parent.model).is_absolute()]
    # The root, or a directory in it, says nothing of whose machine it is, and is a part of many texts.
    return [token for token in (get_token(),) if token] + [str(p) for p in paths if len(p.parts) > 2]


def _refuse_secrets(directory: Path, secrets: Iterable[str]) -> None:
    wanted = [secret.encode() for secret in secrets]
    for file in sorted(directory.rglob("*")):
        if not file.is_file():
            continue
        content = _metadata(file) if file.match(WEIGHTS) else file.read_bytes()
        if any(secret in content for secret in wanted):
            raise MergeFailedError(
                f"{file.name} names a path of this machine or the token, and was not published; look for it "
                "in that file of the model, and in the config of the run"
            )


def _metadata(file: Path) -> bytes:
    """What a safetensors file says besides its tensors."""
    with safe_open(file, "pt") as tensors:
        return json.dumps(tensors.metadata() or {}, ensure_ascii=False).encode()
