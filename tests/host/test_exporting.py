"""The files of `export --plain` make the same model with a mergekit that does not know us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts import multimerge
from safetensors.torch import load_file

from gptailor_merge.errors import RecipeError
from gptailor_merge.host.exporting import RECIPE, export
from gptailor_merge.host.materialize import materialize
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of
from tests.test_architectures import pruning, stack
from tests.zoo import ZOO, write_family


def write_plain(recipe: Recipe, directory: Path) -> bool:
    directory.mkdir()
    return export(*check_with_family(recipe), directory)


def run_plain(directory: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs mergekit on the exported files, as its users do."""
    monkeypatch.chdir(directory)
    documents = list(yaml.safe_load_all(Path(RECIPE).read_text()))
    assert "tailor" not in {document["merge_method"] for document in documents}
    if len(documents) == 1:
        run_merge(MergeConfiguration.model_validate(documents[0]), str(out), MergeOptions(quiet=True))
    else:
        arguments = [RECIPE, "--out-path", str(out), "-I", "./parts"]
        assert CliRunner().invoke(multimerge.main, arguments, catch_exceptions=False).exit_code == 0


def assert_same_model(ours: Path, theirs: Path) -> None:
    one, other = (
        {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
        for out in (ours, theirs)
    )
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name
    configs = [
        {k: v for k, v in yaml.safe_load((out / "config.json").read_text()).items() if k != "dtype"}
        for out in (ours, theirs)
    ]
    assert configs[0] == configs[1]
    if (ours / "tokenizer.json").exists():  # mergekit invents one where there is none
        assert all((ours / f.name).read_bytes() == f.read_bytes() for f in theirs.glob("tokenizer*"))


REFUSED = {
    "qwen3_moe": "stock mergekit cannot make .*experts.down_proj of this",
    "gpt_neox": "stock mergekit cannot make lm_head.weight of this",
}


@pytest.mark.parametrize("name", ZOO)
def test_the_plain_configuration_makes_the_same_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = pruning(write_family(tmp_path, name))
    if name in REFUSED:
        with pytest.raises(RecipeError, match=REFUSED[name]):
            write_plain(recipe, tmp_path / "plain")
        return
    assert not write_plain(recipe, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    materialize(recipe, tmp_path / "ours")
    assert_same_model(tmp_path / "ours", tmp_path / "stock")


def merged_by(method: str, family: dict[str, str], **shared: Any) -> dict[str, object]:
    sources: list[dict[str, Any]] = [
        {"model": family[name], "layer_range": [2, 4]} for name in ("base", "math", "code")
    ]
    if method == "slerp":
        sources = sources[:2]
    else:
        for source in sources[method != "linear" :]:
            source["parameters"] = {"weight": 0.4}
    return {"sources": sources, "parameters": {"op": "merge", "method": method, **shared}}


@pytest.mark.parametrize(
    ("method", "shared"),
    [
        ("linear", {"normalize": False}),
        ("slerp", {"t": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.5}]}),
        ("ties", {"density": 0.6}),
        ("task_arithmetic", {"lambda": 0.7}),
    ],
)
@pytest.mark.parametrize("ends", ["base", "selected", "merged"])
def test_methods_filters_embeddings_and_heads(
    method: str,
    shared: dict[str, Any],
    ends: str,
    family: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = family["math" if method == "slerp" else "code"]
    weights = {family["math"]: 0.5, "base": 0.2} | ({} if method == "slerp" else {other: 0.5})
    parameters: dict[str, Any] = {
        "base": {},
        "selected": {"embeddings": family["math"], "head": other},
        "merged": {"head": {"method": "linear", "weights": weights}},
    }[ends]
    document = recipe_of(
        family, merged_by(method, family, **shared), out_dtype="bfloat16", parameters=parameters
    )
    recipe = Recipe.from_mapping(document)
    write_plain(recipe, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    materialize(recipe, tmp_path / "ours")
    assert_same_model(tmp_path / "ours", tmp_path / "stock")


def test_a_stack_of_selected_layers_is_one_configuration(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"sources": [{"model": family["code"], "layer_range": [2, 4]}], "parameters": {"op": "select"}}
    recipe = Recipe.from_mapping(recipe_of(family, whole, out_dtype="bfloat16"))
    assert not write_plain(recipe, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    materialize(recipe, tmp_path / "ours")
    assert_same_model(tmp_path / "ours", tmp_path / "stock")


@pytest.mark.parametrize(
    ("method", "shared", "message"),
    [
        (
            "dare_ties",
            {"density": 0.5},
            "dare_ties draws random numbers, and mergekit draws others in every run",
        ),
        (
            "linear",
            {"normalize": [{"filter": "model", "value": False}, {"value": True}]},
            "the filter 'model'",
        ),
    ],
)
def test_what_has_no_plain_form_is_refused(
    method: str, shared: dict[str, Any], message: str, family: dict[str, str], tmp_path: Path
) -> None:
    recipe = Recipe.from_mapping(recipe_of(family, merged_by(method, family, **shared)))
    with pytest.raises(RecipeError, match=message):
        write_plain(recipe, tmp_path / "plain")


def test_the_most_common_template_is_not_counted_with_a_skeleton(tmp_path: Path) -> None:
    recipe = pruning(write_family(tmp_path, "qwen3"))
    (tmp_path / "plain").mkdir()
    with pytest.raises(RecipeError, match="chat_template: auto would count the skeleton's template as well"):
        export(*check_with_family(recipe), tmp_path / "plain", chat_template="auto")


def test_scaled_layers_stay_scaled(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document: dict[str, Any] = recipe_of(family, out_dtype="bfloat16")
    document["slices"][2] = {
        "sources": [{"model": family["math"], "layer_range": [2, 4]}],
        "parameters": {
            "op": "select",
            "scale": [{"filter": "down_proj", "value": [0.5, 0.0]}, {"value": 1.0}],
        },
    }
    recipe = Recipe.from_mapping(document)
    assert not write_plain(recipe, tmp_path / "plain")
    run_plain(tmp_path / "plain", tmp_path / "stock", monkeypatch)
    materialize(recipe, tmp_path / "ours")
    assert_same_model(tmp_path / "ours", tmp_path / "stock")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert not written["model.layers.2.mlp.down_proj.weight"].any()


def test_merged_layers_alone_must_keep_a_fixed_pattern(tmp_path: Path) -> None:
    recipe = stack(write_family(tmp_path, "ernie4_5_moe", torch.float32), [0, 1, 4, 5, 6, 7], (1, 1))
    with pytest.raises(RecipeError, match="cannot describe the layers that are merged by linear alone"):
        write_plain(recipe, tmp_path / "plain")
