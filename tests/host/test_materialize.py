from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptailor_merge.errors import MergeFailedError
from gptailor_merge.files import staging
from gptailor_merge.host.materialize import materialize, verify
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of


def change(directory: Path, rename: dict[str, str | None] | None = None, value: float | None = None) -> None:
    """Damage a written model: rename or drop tensors, or overwrite one value."""
    tensors = load_file(directory / "model.safetensors")
    for old, new in (rename or {}).items():
        tensor = tensors.pop(old)
        if new is not None:
            tensors[new] = tensor
    if value is not None:
        tensors["model.norm.weight"][0] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"rename": {"model.layers.3.mlp.up_proj.weight": None}}, "reloading finds missing_keys"),
        ({"rename": {"lm_head.weight": "model.head.weight"}}, "reloading finds missing_keys"),
        ({"value": float("nan")}, "model.norm.weight holds values that are not finite"),
    ],
)
def test_damage_is_found(
    family: dict[str, str], tmp_path: Path, damage: dict[str, object], message: str
) -> None:
    plan = materialize(Recipe.from_mapping(recipe_of(family)), tmp_path / "out")
    verify(tmp_path / "out", plan)
    change(tmp_path / "out", **damage)  # type: ignore[arg-type]
    with pytest.raises(MergeFailedError, match=message):
        verify(tmp_path / "out", plan)


def test_a_model_of_another_depth_is_found(family: dict[str, str], tmp_path: Path) -> None:
    document = recipe_of(family)
    plan = materialize(Recipe.from_mapping(document), tmp_path / "out")
    longer = Recipe.from_mapping({**document, "slices": [document["slices"][0], *document["slices"]]})  # type: ignore[index,misc]
    materialize(longer, tmp_path / "longer")
    with pytest.raises(MergeFailedError, match="5 layers, the recipe has 4"):
        verify(tmp_path / "longer", plan)


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staging(tmp_path / "out") as directory:
            (directory / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with staging(tmp_path / "out") as directory:
        (directory / "whole").touch()
        assert not (tmp_path / "out").exists()
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["whole"]


def test_local_paths_with_mergekits_special_characters(family: dict[str, str], tmp_path: Path) -> None:
    """mergekit would read @ as a revision and + as a LoRA."""
    odd = tmp_path / "me@work+home"
    odd.symlink_to(family["math"])
    materialize(Recipe.from_mapping(recipe_of({**family, "math": str(odd)})), tmp_path / "odd")
    materialize(Recipe.from_mapping(recipe_of(family)), tmp_path / "plain")
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("odd", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in other)
