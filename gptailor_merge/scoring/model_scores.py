"""One model, or one recipe, scored on text files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.errors import ConfigError, FamilyError
from gptailor_merge.models.devices import compute_dtype, stored_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model, load_tokenizer, member_digest
from gptailor_merge.objectives.kl import build_kl
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import Objective, Prediction
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.text_kinds import token_sets
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.passes import Passes, predictions_alone

BATCH_TOKENS = 4096


def score_path(
    path: Path,
    data: Sequence[str],
    *,
    tokens: int,
    sequence_length: int,
    reference: str | None,
    top_k: int,
    device: torch.device,
) -> dict[str, Any]:
    """Score a recipe file or a model directory.

    Args:
        data: files, each `path` or `name=path`; the default name is the file's without its ending.
        tokens: in all, shared evenly by the files.
        reference: directory or Hub id of the model that KL is measured against.

    Returns:
        {"files": {name: {"nll", "perplexity", "kl", "tokens"}}, "total": {…}}; nll and kl in nats
        per predicted token, kl only with a reference.
    """
    files = named(data)
    model, directory = open_model(path, device)
    sets = token_sets(files, load_tokenizer(directory), tokens, sequence_length)
    rungs = layout(sets, BATCH_TOKENS, device=device)
    objectives: list[Objective] = [Perplexity("nll", sets)]
    if reference is not None:
        teacher = Family.load(reference, {}).base
        size = int(model.config.vocab_size)
        if int(teacher.config["vocab_size"]) < size:
            raise FamilyError(f"{reference}: its vocabulary is smaller than the model's, {size}")
        dense = load_model(teacher.directory, compute_dtype(device, stored_dtype(teacher)), device)

        def forward(batch: Batch) -> Iterator[Prediction]:
            return predictions_alone(dense, batch, vocabulary=size)

        teachers = {s.name: (member_digest(teacher.directory), forward) for s in sets}
        batches = [batch for rung in rungs for batch in rung]
        objectives.append(build_kl("kl", sets, teachers=teachers, top_k=top_k, batches=batches))
    scores = Passes(objectives, rungs).score(model)
    rows = {s.name: _row({name: by_set[s.name] for name, by_set in scores.items()}) for s in sets}
    total = _row({name: Score.total(list(by_set.values())) for name, by_set in scores.items()})
    return {"files": rows, "total": total}


def _row(scores: dict[str, Score]) -> dict[str, Any]:
    nll = scores["nll"]
    kl = {"kl": scores["kl"].mean} if "kl" in scores else {}
    return {"nll": nll.mean, "perplexity": nll.natural, **kl, "tokens": nll.count}


def named(data: Sequence[str]) -> dict[str, str]:
    """name -> file, of what `--data` was given."""
    files: dict[str, str] = {}
    for item in data:
        named = "=" in item and not Path(item).exists()
        name, path = item.split("=", 1) if named else (Path(item).stem, item)
        if name in files:
            raise ConfigError(f"two files are called {name!r}; name them: --data NAME={path}")
        files[name] = path
    return files


def open_model(path: Path, device: torch.device) -> tuple[PreTrainedModel, Path]:
    """The live model, and the directory with its tokenizer."""
    if path.is_dir():
        member = Family.load(str(path), {}).base
        return load_model(path, compute_dtype(device, stored_dtype(member)), device), path
    recipe = Recipe.load(path)
    plan, family = check_with_family(recipe, file=path)
    out = recipe.out_dtype or recipe.dtype or stored_dtype(family.base)
    precision = Precision.of(recipe.dtype, recipe.out_dtype, compute_dtype(device, out))
    composer = Composer(Bank(family, precision, device=device))
    return composer.compose(plan), family.by_model(plan.tokenizer).directory
