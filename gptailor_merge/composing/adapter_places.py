"""Finds the linear maps that the adapter of a recipe changes, and gives a recipe an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptailor_merge.composing.adapting import adapter_digest, load_adapter
from gptailor_merge.composing.editing import Placed
from gptailor_merge.errors import FamilyError, RecipeError
from gptailor_merge.methods.adapters import unties_head
from gptailor_merge.models.architecture import Architecture, config_text, on_meta
from gptailor_merge.models.devices import stored_dtype
from gptailor_merge.models.member import read_member
from gptailor_merge.recipe.plan import Edit
from gptailor_merge.recipe.recipe import Recipe


def with_adapter(recipe: Recipe, directory: Path, *, name: str | None = None) -> Recipe:
    """Returns the recipe with an adapter added to its layers, in the place of one that it has.

    The out_dtype, to which the sum is rounded, is written into the recipe if that lacks it.

    Args:
        directory: the adapter as peft's save_pretrained writes it, trained on the model of the recipe.
        name: the directory as the recipe names it, e.g. relative to the recipe's file; default `directory`.

    Raises:
        RecipeError: it is no plain LoRA adapter.
        FamilyError: the dtype of the base cannot be read.
    """
    digest = adapter_digest(directory)
    load_adapter(str(directory), digest)
    update = {"adapter": name or str(directory), "adapter_digest": digest}
    out_dtype = recipe.out_dtype or recipe.dtype or stored_dtype(read_member("base", recipe.base_model))
    parameters = recipe.parameters.model_copy(update=update)
    return recipe.model_copy(update={"parameters": parameters, "out_dtype": out_dtype})


def placed_adapter(edit: Edit, config: Mapping[str, Any], layer: int) -> Placed:
    """Adds to a slot's share of an adapter the names of the weights that it changes.

    Args:
        config: the base's.
        layer: the layer of the slot's first source.

    Raises:
        RecipeError: the adapter cannot be read, or changes what the layer lacks or has in another shape.
    """
    assert edit.digest is not None
    architecture = Architecture.of(config)
    prefix = f"{architecture.prefix}{edit.position}."
    names = []
    for path, (down, up) in load_adapter(edit.file, edit.digest).factors.items():
        if not path.startswith(prefix):
            continue
        name, shape = f"{path.removeprefix(prefix)}.weight", [up.shape[0], down.shape[1]]
        expected = architecture.layers[layer].get(name)
        if expected is None:
            raise RecipeError(f"{edit.file} changes {path}, which the layer does not have")
        if list(expected) != shape:
            raise RecipeError(f"{edit.file} changes {path} by {shape}, and the layer has {list(expected)}")
        names.append(name)
    return Placed(edit, tuple(names), prefix)


def check_adapter(edit: Edit, config: Mapping[str, Any]) -> None:
    """Checks that a whole adapter fits the pruned model.

    Args:
        config: the pruned model's.

    Raises:
        RecipeError: it was trained on another model, or changes something outside the layers.
    """
    assert edit.digest is not None
    adapter = load_adapter(edit.file, edit.digest)
    architecture = Architecture.of(config)
    for path in adapter.factors:
        if not path.startswith(architecture.prefix):
            text = "and the adapter of a recipe changes linear maps inside the layers only"
            raise RecipeError(f"{edit.file} changes {path}, {text}")
        position = path.removeprefix(architecture.prefix).partition(".")[0]
        if not position.isdecimal() or int(position) >= len(architecture.layers):
            text = f"and the pruned model has {len(architecture.layers)} layers, from 0"
            raise RecipeError(f"{edit.file} changes {path}, {text}")
    try:
        unties_head(on_meta(config_text(config)), Path(edit.file), adapter.shapes)
    except FamilyError as error:
        raise RecipeError(f"{edit.file} was not trained on this pruned model: {error}") from None
