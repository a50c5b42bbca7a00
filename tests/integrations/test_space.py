"""The Space's functions, without gradio: they read headers, refuse paths, and escape what strangers write."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gptailor_merge
from gptailor_merge.errors import ConfigError
from gptailor_merge.models.family import Family
from tests.conftest import write_member

FOLDER = Path(__file__).parents[2] / "integrations" / "space"

RECIPE = """
merge_method: tailor
base_model: org/base
dtype: float32
slices:
  - sources: [{model: org/math, layer_range: [0, 2]}]
    parameters: {op: select}
  - sources: [{model: org/base, layer_range: [2, 3]}]
    parameters: {op: remove}
  - sources:
      - {model: org/base, layer_range: [3, 4]}
      - {model: org/math, layer_range: [3, 4], parameters: {weight: 0.5}}
    parameters: {op: merge, method: task_arithmetic}
"""


@pytest.fixture(scope="module")
def space() -> Any:
    spec = importlib.util.spec_from_file_location("describe", FOLDER / "describe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_is_described_by_its_headers(
    space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_member(tmp_path / "m", 0)
    family = Family.load(str(model), {})
    asked: list[str] = []

    def load(name: str, variants: object) -> Family:
        asked.append(name)
        return family

    monkeypatch.setattr(space.Family, "load", load)
    facts, drawn = space.model_page(" org/small@main ")
    assert asked == ["org/small@main"]
    assert f"of **{family.depth} layers** and {family.parameters(range(family.depth)):,} parameters" in facts
    assert drawn.count("<td") == family.depth


@pytest.mark.parametrize(
    "name", ["", "/etc", "..", "../models/x", "a/../b", "tests", "org/<b>", "C:\\x", "x" * 500]
)
def test_only_the_hub_is_read(space: Any, name: str) -> None:
    facts, drawn = space.model_page(name)
    assert facts.startswith("Not read: expected a Hub id")
    assert drawn == ""
    assert "<b>" not in facts
    assert space.config_page(name, "", 0.75)[0] == ""


def test_a_path_that_looks_like_a_hub_id_is_refused(
    space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert space.model_page("org/model")[0].startswith("Not read")
    assert space.recipe_page(RECIPE.replace("org/math", "org/model"))[1] == ""


def test_a_recipe_is_checked_and_drawn(space: Any) -> None:
    verdict, drawn = space.recipe_page(RECIPE)
    assert verdict.startswith("Sound: **3 layers**; layers 2 of the family are gone. Digest `")
    assert drawn.count("<tr>") == 3
    assert drawn.count("×") == 2
    assert ">.5<" in drawn


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("weight: 0.5", "wieght: 0.5", "wieght"),
        ("org/math", "/etc/passwd", "expected a Hub id"),
        ("{op: select}", "{op: select, repair: /etc/passwd, repair_digest: '0'}", "- "),
        ("slices", "<script>", "&lt;script>"),
        ("op: remove", "op: [", "- "),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told(space: Any, old: str, new: str, said: str) -> None:
    verdict, drawn = space.recipe_page(RECIPE.replace(old, new))
    assert verdict.startswith("Not sound:")
    assert said in verdict
    assert "<script>" not in verdict
    assert drawn == ""
    assert space.recipe_page("x" * 200_001)[0].endswith("expected at most 200,000 characters, found 200,001")


def test_a_search_config_is_that_of_gptailor_init(space: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def draft(base: str, variants: list[str], *, out: Path, target: float) -> SimpleNamespace:
        if "org/odd" in variants:
            raise ConfigError(f"{out} is odd")
        out.write_text(
            f"# yaml-language-server: $schema=/s.json\n# {out}\nfamily: {base}, {variants}, {target}\n"
        )
        return SimpleNamespace(command=f"gptailor-evolve {out} --out runs/search")

    monkeypatch.setattr(gptailor_merge, "draft", draft, raising=False)
    config, then = space.config_page("org/base", "org/math\n\n org/code ", 0.75)
    assert config == "# search.yml\nfamily: org/base, ['org/math', 'org/code'], 0.75\n"
    assert then == "Save it as `search.yml`, then `gptailor-evolve search.yml --out runs/search`."
    assert space.config_page("org/base", "org/odd", 0.75) == ("", "Not possible: search.yml is odd")
