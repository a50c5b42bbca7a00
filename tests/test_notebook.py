"""The notebook runs from its first cell to its last, here with a tiny family in the place of the demo's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gptailor_merge.config import SearchConfig

NOTEBOOK = Path(__file__).parent.parent / "recipes" / "first-search.ipynb"


def test_the_notebook_runs(
    family: dict[str, str],
    texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)
    config = {
        "family": {"base": family["base"], "variants": {"math": family["math"]}},
        "target": {"layers": 3},
        "objectives": [{"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16}],
        "held_out": [
            {
                "kind": "perplexity",
                "data": reversed_texts(texts, tmp_path),
                "tokens": 64,
                "sequence_length": 16,
            }
        ],
        "search": {"population": 2, "warm_start": []},
        "repair": {"finalists": 0},
        "tune": {"steps": 0},
        "writes": {"tokens": 4, "prompts": ["ONCE"]},
    }
    file = tmp_path / "search.yml"
    file.write_text(SearchConfig.model_validate(config).to_yaml())
    shown: list[str] = []
    namespace: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "IPython.display", display_module(shown))
    for cell in cells:
        source, tags = "".join(cell["source"]), cell["metadata"].get("tags", ())
        if "install" in tags:
            source = source.replace("%pip install", "pass  # ")
        elif "parameters" in tags:
            assert {name for name in ("CONFIG", "OUT", "BUDGET") if f"\n{name} =" in source} == PARAMETERS
            source = f"from pathlib import Path\nCONFIG, OUT, BUDGET = Path({str(file)!r}), Path({str(tmp_path / 'run')!r}), 4"
        exec(compile(source, str(NOTEBOOK), "exec"), namespace)
    out = capsys.readouterr().out
    assert [Path(picture).name for picture in shown] == ["held-out.png", "map.png", "progress.png"]
    assert "5 layers, " in out
    assert "found        3 layers" in out
    assert "> ONCE\nbase : '" in out
    assert (tmp_path / "run" / "report.html").is_file()


PARAMETERS = {"CONFIG", "OUT", "BUDGET"}


def reversed_texts(texts: dict[str, str], directory: Path) -> dict[str, str]:
    """Writes the texts backwards, so that none of them is searched on."""
    files = {}
    for name, file in texts.items():
        rows = [json.loads(line)["text"][::-1] for line in Path(file).read_text().splitlines()]
        files[name] = str(directory / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return files


def display_module(shown: list[str]) -> ModuleType:
    """Returns what the notebook takes of IPython, which remembers the pictures."""
    module = ModuleType("IPython.display")
    module.Image = lambda filename: filename  # type: ignore[attr-defined]
    module.display = shown.append  # type: ignore[attr-defined]
    return module
