"""Members have public names, and their licences decide that of a model made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptailor_merge.errors import ConfigError
from gptailor_merge.hub.parents import Licence, languages_of, licence_of, parents_of


def model(directory: Path, card: str | None) -> str:
    directory.mkdir(parents=True)
    if card is not None:
        (directory / "README.md").write_text(card)
    return str(directory)


def test_directories_are_called_by_their_names(tmp_path: Path) -> None:
    base, math = (model(tmp_path / "secret" / name, None) for name in ("llama", "llama-math"))
    parents = parents_of({"base": base, "math": math})
    assert [(one.member, one.name, one.pinned) for one in parents] == [
        ("base", "llama", "./llama"),
        ("math", "llama-math", "./llama-math"),
    ]


def test_directories_of_one_name_are_called_as_the_family_does(tmp_path: Path) -> None:
    base, math = (model(tmp_path / place / "model", None) for place in ("one", "other"))
    parents = parents_of({"base": base, "math": math})
    assert [one.pinned for one in parents] == ["./base", "./math"]


def test_hub_ids_keep_their_revision_and_their_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    adapter = model(tmp_path / "lora", None)
    parents = parents_of({"base": "org/base@v1", "math": f"org/math+{adapter}"})
    assert [(one.name, one.pinned, one.unpinned) for one in parents] == [
        ("org/base", "org/base@v1", "org/base"),
        ("org/math + lora", "org/math+./lora", "org/math+./lora"),
    ]
    assert [part.hub_id for one in parents for part in one.parts] == ["org/base", "org/math", None]


def test_one_licence_of_all(tmp_path: Path) -> None:
    card = "---\nlicense: Apache-2.0\nlanguage: {}\n---\n# A model\n"
    models = {
        "base": model(tmp_path / "base", card.format("[en, de]")),
        "math": model(tmp_path / "math", card.format("fr")),
        "code": model(tmp_path / "code", card.format("no")),  # YAML reads false
    }
    parents = parents_of(models)
    assert licence_of(parents, None) == Licence("apache-2.0")
    assert languages_of(parents) == ["en", "de", "fr"]


def test_a_licence_with_a_name_of_its_own(tmp_path: Path) -> None:
    card = "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"
    parents = parents_of({name: model(tmp_path / name, card) for name in ("base", "math")})
    own = Licence("other", "own", "LICENSE")
    assert licence_of(parents, None) == licence_of(parents, "other") == own
    assert licence_of(parents, "mit") == Licence("mit")


def test_licences_that_differ_stop_until_one_is_chosen(tmp_path: Path) -> None:
    models = {
        "base": model(tmp_path / "base", "---\nlicense: llama3.1\n---\n"),
        "math": model(tmp_path / "math", "---\nlicense: mit\n---\n"),
    }
    parents = parents_of(models)
    with pytest.raises(ConfigError, match=r"differ: base has llama3\.1, math has mit; .* --license"):
        licence_of(parents, None)
    assert licence_of(parents, "llama3.1") == Licence("llama3.1")


@pytest.mark.parametrize(
    "card", [None, "# A model\n", "---\nlanguage: en\n---\n", "---\n: [\n---\n", "---\n- list\n---\n"]
)
def test_no_licence_stops_until_one_is_chosen(tmp_path: Path, card: str | None) -> None:
    models = {
        "base": model(tmp_path / "base", "---\nlicense: mit\n---\n"),
        "math": model(tmp_path / "math", card),
    }
    parents = parents_of(models)
    with pytest.raises(ConfigError, match=r"no licence is stated by math; .* --license apache-2\.0"):
        licence_of(parents, None)
    assert licence_of(parents, "mit") == Licence("mit")
