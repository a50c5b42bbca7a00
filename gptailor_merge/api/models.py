"""Writes models to disk, composes them in memory, and checks them."""

from __future__ import annotations

from transformers import PreTrainedModel

from gptailor_merge.api.arguments import AnyPath, path_of, read_recipe
from gptailor_merge.checking.soundness import SoundnessReport, examine
from gptailor_merge.errors import log_warning
from gptailor_merge.host import materialize as host
from gptailor_merge.models.devices import pick_device
from gptailor_merge.planning.check import OnWarning
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.lock import locked_around
from gptailor_merge.scoring.live_models import open_model, open_recipe


def materialize(recipe: AnyPath | Recipe, out: AnyPath, *, on_warning: OnWarning = log_warning) -> Plan:
    """Writes the model of a recipe with mergekit, verifies it by loading it back, and returns its plan.

        plan = materialize("runs/first/best.yml", "models/first")
        print(len(plan.slots), "layers")

    Args:
        recipe: a recipe, or its file.
        out: the model directory to make; it appears whole or not at all.
        on_warning: is told what differs between the members, and what the result takes; logs it by default.

    Raises:
        RecipeError, FamilyError: the recipe is wrong, or its models do not fit together.
        ConfigError: `out` exists and is not an empty directory, or lies in a run that another process is
            writing.
        MergeFailedError: mergekit failed, or the model does not load back as it should.
    """
    whole, file = read_recipe(recipe)
    directory = path_of(out)
    with locked_around(directory):
        return host.materialize(whole, directory, file=file, on_warning=on_warning)


def compose(model: AnyPath | Recipe, *, device: str = "auto") -> PreTrainedModel:
    """Returns the live model of a recipe without writing anything, or loads a model directory.

        model = compose("recipes/demo/best.yml", device="cpu")
        print(model.config.num_hidden_layers)

    Args:
        model: a recipe, its file, or a model directory.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        RecipeError, FamilyError: the recipe is wrong, or its models do not fit together.
    """
    torch_device = pick_device(device)
    if isinstance(model, Recipe):
        return open_recipe(model, torch_device).model
    return open_model(path_of(model), torch_device).model


def check(directory: AnyPath, *, gguf: bool = False) -> SoundnessReport:
    """Examines a model directory from every side: files, config, weights, tokenizer, running it.

        findings = check("models/first").findings
        print([finding.sentence for finding in findings if finding.verdict == "fail"])

    Args:
        gguf: also converts it with llama.cpp and reads the layers back.

    Raises:
        FamilyError: this is no model directory.
        ConfigError: `gguf` is asked for, and the converter is not there.
    """
    return examine(path_of(directory), gguf=gguf)
