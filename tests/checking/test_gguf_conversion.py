"""Conversion to GGUF, with a converter that writes what a test wants."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gptailor_merge.checking.finding import Finding
from gptailor_merge.checking.gguf_conversion import COMMAND, SCRIPT, find_converter
from gptailor_merge.checking.soundness import examine
from gptailor_merge.errors import ConfigError
from tests.conftest import DEPTH

WRITES = """
import sys
from gguf import GGUFWriter

model, flag, out, *_ = sys.argv[1:]
assert flag == "--outfile"
writer = GGUFWriter(out, "llama")
{body}
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for llama.cpp's; its path has a space, which a shell would split."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama cpp"))
    (tmp_path / "llama cpp").mkdir()
    return tmp_path / "llama cpp"


def conversion(model: str, script: Path, text: str) -> Finding:
    """The last finding, with a converter of this text."""
    script.write_text(text)
    finding = examine(Path(model), gguf=True).findings[-1]
    assert finding.name == "gguf"
    return finding


def test_the_layers_are_read_back(family: dict[str, str], directory: Path) -> None:
    script = WRITES.format(body=f"writer.add_block_count({DEPTH})")
    finding = conversion(family["base"], directory / SCRIPT, script)
    assert finding == Finding("gguf", "ok", "llama.cpp's converter writes 5 layers")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (WRITES.format(body="writer.add_block_count(4)"), "says 4 layers, num_hidden_layers is 5"),
        (WRITES.format(body=""), "cannot be read: KeyError('llama.block_count')"),
        ("import sys; open(sys.argv[3], 'w').write('no gguf')", "cannot be read: ValueError"),
        ("import sys; sys.exit('Model X is not supported')", "exits with 1: Model X is not supported"),
        ("", "exits with 0: nothing"),
    ],
)
def test_a_conversion_that_is_wrong(
    family: dict[str, str], directory: Path, script: str, message: str
) -> None:
    finding = conversion(family["base"], directory / SCRIPT, script)
    assert (finding.verdict, message in finding.sentence) == ("fail", True), finding


def test_where_the_converter_is_looked_for(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"LLAMA_CPP is .*/llama cpp; expected llama.cpp's directory"):
        find_converter()
    (directory / SCRIPT).touch()
    assert find_converter() == [sys.executable, str(directory / SCRIPT)]
    monkeypatch.setenv("LLAMA_CPP", str(directory / SCRIPT))
    assert find_converter() == [sys.executable, str(directory / SCRIPT)]
    monkeypatch.delenv("LLAMA_CPP")
    with pytest.raises(ConfigError, match=r"LLAMA_CPP is not set, neither .* is on PATH, and no such module"):
        find_converter()
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / SCRIPT).touch()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    assert find_converter() == [sys.executable, str(tmp_path / "modules" / SCRIPT)]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / COMMAND).touch(mode=0o755)
    assert find_converter() == [str(tmp_path / "bin" / COMMAND)]


def test_without_the_package_gguf(
    family: dict[str, str], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / SCRIPT).touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'gptailor-merge\[gguf\]'"):
        examine(Path(family["base"]), gguf=True)
