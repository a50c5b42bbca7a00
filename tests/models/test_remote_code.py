"""A model that needs Python code of its repository is refused in words that a user can act on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.checking.soundness import examine
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.models.member import read_member


@pytest.mark.parametrize(
    ("file", "change", "load"),
    [
        ("config.json", {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}, "member"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["odd.Odd", None]}},
            "tokenizer",
        ),
    ],
)
def test_remote_code_is_refused_without_impossible_advice(
    family: dict[str, str], tmp_path: Path, file: str, change: dict[str, Any], load: str
) -> None:
    directory = Path(shutil.copytree(family["base"], tmp_path / "odd"))
    document = json.loads((directory / file).read_text())
    (directory / file).write_text(json.dumps(document | change))
    with pytest.raises(
        FamilyError, match="needs Python code from its repository, which is never run"
    ) as caught:
        read_member("base", str(directory)) if load == "member" else load_tokenizer(directory)
    assert "trust_remote_code" not in str(caught.value)
    if load == "member":
        sentences = [finding.sentence for finding in examine(directory).findings]
        assert any("is never run here" in sentence for sentence in sentences)
        assert not any("trust_remote_code" in sentence for sentence in sentences)
