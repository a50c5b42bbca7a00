"""Stock mergekit runs our recipes, and other people's as if we were not there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts import multimerge
from safetensors.torch import load_file

from gptailor_merge.host.materialize import materialize
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of
from tests.packages import command

SCRIPTS = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def run(command: list[str], cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)


def write(path: Path, *documents: Any) -> str:
    path.write_text("---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents))
    return str(path)


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_mergekit_yaml_runs_a_recipe(family: dict[str, str], tmp_path: Path) -> None:
    document = recipe_of(family, dtype="float32", out_dtype="bfloat16")
    file = write(tmp_path / "recipe.yml", document)
    done = run([str(SCRIPTS / "mergekit-yaml"), file, str(tmp_path / "stock")])
    assert done.returncode == 0, done.stderr
    materialize(Recipe.from_mapping(document), tmp_path / "ours")
    assert_same_weights(tmp_path / "stock", tmp_path / "ours")
    card = (tmp_path / "stock" / "README.md").read_text()
    assert "[GPTailor](https://arxiv.org/abs/2506.20480) merge method" in card
    assert "op: remove" in card
    kept = (tmp_path / "stock" / "mergekit_config.yml").read_text()
    assert yaml.safe_load(kept) == document


def test_mistakes_end_mergekit_yaml_with_one_message(family: dict[str, str], tmp_path: Path) -> None:
    document = recipe_of(family)
    document["slices"][2]["parameters"]["method"] = "task_arithmetik"  # type: ignore[index]
    file = write(tmp_path / "recipe.yml", document)
    done = run([str(SCRIPTS / "mergekit-yaml"), file, str(tmp_path / "out")])
    assert done.returncode == 2
    expected = "slices[2].parameters.method: unknown method, found 'task_arithmetik'; did you mean 'task_arithmetic'?"
    assert done.stderr.strip().startswith(f"Error: {file}:")
    assert expected in done.stderr
    assert not (tmp_path / "out").exists()


def test_mergekit_multi_runs_a_recipe(family: dict[str, str], tmp_path: Path) -> None:
    """A plain merge, by name, as a member of a recipe of ours."""
    average = {
        "name": "average",
        "merge_method": "linear",
        "models": [{"model": family[n], "parameters": {"weight": 0.5}} for n in ("math", "code")],
    }
    document = recipe_of({**family, "math": "average"}, dtype="float32", out_dtype="bfloat16")
    file = write(tmp_path / "multi.yml", average, document)
    out, between = str(tmp_path / "out"), str(tmp_path / "between")
    done = command(multimerge.main, file, "--out-path", out, "-I", between)
    assert done.returncode == 0, done.stderr
    by_path = recipe_of({**family, "math": f"{between}/average"}, dtype="float32", out_dtype="bfloat16")
    materialize(Recipe.from_mapping(by_path), tmp_path / "ours")
    assert_same_weights(tmp_path / "out", tmp_path / "ours")


WITHOUT_HOOKS = """
import sys
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main

for name in sys.argv[1:]:
    CliRunner().invoke(main, [f"{name}.yml", f"{name}-without", "--clone-tensors"], catch_exceptions=False)
from gptailor_merge.cli.app import main
sys.argv[1:] = ["merge", "recipe.yml", "cli"]
main()
"""


def test_other_peoples_recipes_run_as_before_and_ours_without_the_hook(
    family: dict[str, str], tmp_path: Path
) -> None:
    both = [{"model": family[n], "layer_range": [0, 5]} for n in ("base", "math")]
    methods = ("slerp", "passthrough", "task_arithmetic")
    for method in methods:
        plain: dict[str, Any] = {"merge_method": method, "base_model": family["base"], "dtype": "float32"}
        if method == "passthrough":
            plain["slices"] = [{"sources": [both[1] | {"layer_range": [0, 2]}]}, {"sources": [both[0]]}]
        else:
            plain["slices"] = [{"sources": both, "parameters": {"t": 0.4, "weight": 0.3, "ignored": 1}}]
        write(tmp_path / f"{method}.yml", plain)
    ours = recipe_of(family, dtype="float32", out_dtype="bfloat16")
    write(tmp_path / "recipe.yml", ours)
    done = run(
        [sys.executable, "-c", WITHOUT_HOOKS, *methods], cwd=tmp_path, PYDANTIC_DISABLE_PLUGINS="__all__"
    )
    assert done.returncode == 0, done.stderr
    for method in methods:
        plain = yaml.safe_load((tmp_path / f"{method}.yml").read_text())
        made = str(tmp_path / f"{method}-with")
        configuration = MergeConfiguration.model_validate(plain)
        run_merge(configuration, made, MergeOptions(quiet=True, clone_tensors=True))
        assert_same_weights(tmp_path / f"{method}-with", tmp_path / f"{method}-without")
    materialize(Recipe.from_mapping(ours), tmp_path / "ours")
    assert_same_weights(tmp_path / "cli", tmp_path / "ours")


def test_the_hook_can_be_switched_off(family: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path / "recipe.yml", recipe_of(family))
    done = run(
        [str(SCRIPTS / "mergekit-yaml"), file, str(tmp_path / "out")], PYDANTIC_DISABLE_PLUGINS="gptailor"
    )
    assert done.returncode != 0
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_hook_imports_nothing_into_other_peoples_processes() -> None:
    code = (
        "import sys; before = set(sys.modules); import gptailor_merge.host.hook\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(m for m in new if m not in sys.stdlib_module_names))"
    )
    assert run([sys.executable, "-c", code]).stdout.strip() == "['gptailor_merge']"


def test_a_normal_install_is_found_as_well(family: dict[str, str], tmp_path: Path) -> None:
    """The tests run on an editable install; here the built wheel is what mergekit finds."""
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wheel = tmp_path / done.stdout.strip().splitlines()[-1]
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(
        run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    )
    zipfile.ZipFile(wheel).extractall(site)
    # The libraries come from our environment; .pth files in there, the editable install's, do not count.
    libraries = run([sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout
    (site / "libraries.pth").write_text(libraries)
    file = write(tmp_path / "recipe.yml", recipe_of(family))
    code = (
        "import sys, gptailor_merge; print(gptailor_merge.__file__)\n"
        "from mergekit.scripts.run_yaml import main; main(sys.argv[1:])"
    )
    done = run([str(python), "-c", code, file, str(tmp_path / "out")], cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(site)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_key_that_stands_twice_ends_mergekit_yaml(family: dict[str, str], tmp_path: Path) -> None:
    """mergekit hands over what YAML has made of the file, which is the last of the two."""
    from click import Command, Context

    from gptailor_merge.errors import RecipeError
    from gptailor_merge.host.hook import _lower_in_place

    file = tmp_path / "recipe.yml"
    write(file, recipe_of(family))
    file.write_text(file.read_text() + "dtype: bfloat16\n")
    with Context(Command("mergekit-yaml")) as context:
        context.params["config_file"] = str(file)
        with pytest.raises(Exception, match="the key 'dtype' is there already, in line") as caught:
            _lower_in_place(yaml.safe_load(file.read_text()))
    assert caught.value.exit_code == RecipeError.exit_code  # type: ignore[attr-defined]
