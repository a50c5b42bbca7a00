"""`gptailor init` writes configs that are read back, and touches nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError

import gptailor_merge as gptailor
from gptailor_merge.api import drafts
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError, FamilyError, InputError
from gptailor_merge.json_schemas import schema_file
from gptailor_merge.models import checkpoint
from gptailor_merge.models.checkpoint import ModelId, is_bare_adapter
from tests.models.test_checkpoint import write_adapter


@pytest.fixture
def home(family: dict[str, str], texts: dict[str, str], tmp_path: Path) -> Path:
    """A directory of a user: models beside texts of which one has the name of a member."""
    for name, model in family.items():
        shutil.copytree(model, tmp_path / "models" / name)
    for part, order in (("calibration", 1), ("held-out", -1)):
        (tmp_path / "texts" / part).mkdir(parents=True)
        for name, file in {"math": texts["sums"], "stories": texts["stories"]}.items():
            rows = [json.loads(line)["text"][::order] for line in Path(file).read_text().splitlines()]
            (tmp_path / "texts" / part / f"{name}.txt").write_text("\n".join(rows))
    (tmp_path / "texts" / "calibration" / "README.md").write_text("no text")
    return tmp_path


def drafted(home: Path, *variants: str, **options: Any) -> gptailor.DraftedSearch:
    models = home / "models"
    options = {"out": home / "search.yml", "device": "cpu", "data": home / "texts", **options}
    return gptailor.draft(
        str(models / "base"), variants or [str(models / n) for n in ("math", "code")], **options
    )


def test_the_config_says_what_the_models_and_texts_are(home: Path) -> None:
    draft = drafted(home)
    text = draft.file.read_text()
    document = yaml.safe_load(text)
    assert document["family"] == {
        "base": "models/base",
        "variants": {"math": "models/math", "code": "models/code"},
    }
    assert document["target"] == {"layers": 3}  # 2,048 and 5 times 1,952 parameters; 3 layers have 0.67 of it
    (kl,) = document["objectives"]
    assert kl["data"] == {"math": "texts/calibration/math.txt", "stories": "texts/calibration/stories.txt"}
    assert kl["teacher"] == {"math": "math"}
    assert kl["sequence_length"] == 64  # as many as the models see at once
    assert document["held_out"][0]["data"]["stories"] == "texts/held-out/stories.txt"
    assert (document["dtype"], document["out_dtype"]) == ("float32", "bfloat16")
    assert document["batch_tokens"] == SearchConfig.model_fields["batch_tokens"].default
    assert SearchConfig.load(draft.file) == draft.config
    assert draft.command == f"gptailor-evolve {draft.file} --out runs/search --device cpu"
    assert f"#     {draft.command}\n" in text
    assert text.startswith(f"# yaml-language-server: $schema={schema_file('search').resolve()}\n")
    assert draft.expected.sizes == {3: 2048 + 16 + 3 * 1952}
    assert draft.expected.speed is None
    assert sorted(os.listdir(home)) == ["models", "search.yml", "texts"]


def test_the_search_that_is_drafted_can_begin(home: Path) -> None:
    """Teachers, leaks between the texts and the space are looked at."""
    session = gptailor.open_session(drafted(home, target=4).file, device="cpu")
    without = [session.select(0, {layer}) for layer in (1, 2, 3)]
    assert session.space.sizes == (4,)
    assert all(loss > 0 for loss in session.losses(without))


def test_a_line_of_comment_stands_on_each_choice(home: Path) -> None:
    lines = drafted(home).file.read_text().splitlines()
    keys = [line for line in lines if not line.startswith(("#", " ")) and not line.endswith(":")]
    assert len(keys) >= 8
    assert [line for line in keys if "  # " not in line] == []
    assert max(map(len, lines)) <= 160


def test_members_and_teachers_by_name(home: Path) -> None:
    models = home / "models"
    draft = drafted(
        home,
        f"sums={models / 'math'}",
        str(models / "code"),
        teachers=["stories=sums", "math=base"],
        target=4,
    )
    assert list(draft.config.family.variants) == ["sums", "code"]
    assert draft.config.objectives[0].model_dump()["teacher"] == {"stories": "sums"}
    assert draft.config.target.layers == 4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by the old name
def test_an_adapter_alone_is_merged_into_the_base(home: Path, tmp_path: Path) -> None:
    base = str(home / "models" / "base")
    adapter = write_adapter(home / "models" / "lora", base)
    draft = drafted(home, str(home / "models" / "lora"))
    assert yaml.safe_load(draft.file.read_text())["family"]["variants"] == {"lora": "models/base+models/lora"}
    assert draft.config.family.variants == {"lora": f"{base}+{home / 'models' / 'lora'}"}
    assert str(home / "models" / "lora") in adapter


def test_an_adapter_on_the_hub_is_one_that_has_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {("me/model", "config.json"), ("me/lora", "adapter_config.json")}

    def download(repo: str, file: str, revision: str | None) -> str:
        if repo == "me/unreachable":
            raise LocalEntryNotFoundError("offline")
        if (repo, file) not in there:
            raise FileNotFoundError(file)
        return "/cache"

    monkeypatch.setattr(checkpoint.huggingface_hub, "hf_hub_download", download)
    names = ("me/model", "me/lora", "me/other")
    assert [is_bare_adapter(ModelId.parse(name)) for name in names] == [False, True, False]
    with pytest.raises(FamilyError, match="me/unreachable: cannot be read from the Hub: offline"):
        is_bare_adapter(ModelId.parse("me/unreachable"))


def test_without_texts_a_data_set_of_the_hub_is_taken(home: Path) -> None:
    draft = drafted(home, data=())
    sources = [objective.sources() for objective in (*draft.config.objectives, *draft.config.held_out)]
    assert [list(source) for source in sources] == [["wikitext"], ["wikitext"]]
    assert "# teacher: {NAME: MEMBER}" in draft.file.read_text()


def test_texts_without_a_directory_to_hold_out_are_searched_on(home: Path, texts: dict[str, str]) -> None:
    draft = drafted(home, data=[home / "texts" / "calibration", f"more={texts['stories']}"])
    assert list(draft.config.objectives[0].sources()) == ["math", "stories", "more"]
    assert draft.config.held_out == ()
    assert "# held_out:  # other texts" in draft.file.read_text()


def test_a_base_alone_is_only_pruned(home: Path) -> None:
    draft = gptailor.draft(
        str(home / "models" / "base"), out=home / "alone.yml", data=home / "texts", device="cpu"
    )
    assert draft.config.operations.merge == ()
    assert draft.config.family.variants == {}


def test_a_family_that_a_gpu_does_not_hold_stays_on_the_host(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50_000, 60_000))
    draft = drafted(home, device="auto")
    assert draft.command.endswith("--bank host")
    assert draft.expected.on_host
    assert "# Memory: 3 members x 11,824 parameters in bfloat16. They stay in the host's memory" in (
        draft.file.read_text()
    )


def test_no_file_is_overwritten_and_bad_input_leaves_none(home: Path) -> None:
    models = home / "models"
    (home / "other" / "math").mkdir(parents=True)
    shallow = Path(shutil.copytree(models / "code", home / "shallow"))
    settings = json.loads((shallow / "config.json").read_text())
    (shallow / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 4}))
    base, math = str(models / "base"), str(models / "math")
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        ([base], {}, "is the base itself; expected a finetune of it"),
        ([math, str(home / "other" / "math")], {}, "would both be called 'math'; name one of them: NAME="),
        ([f"base={math}"], {}, "the name base is the base model's"),
        ([str(home / "none")], {}, "none: no such directory"),
        ([str(shallow)], {}, "num_hidden_layers is 4, the base has 5"),
        (
            [math],
            {"target": 0.1},
            "--target: embeddings, head and one layer have 0.34 of the parameters, found 0.1",
        ),
        ([math], {"target": 6}, "--target: expected a share below 1, or 1 to 5 layers, found 6"),
        ([math], {"target": 2.5}, "found 2.5"),
        ([math], {"data": home / "other"}, "other: the directory holds no texts"),
        ([math], {"data": home / "none"}, "none: no such file"),
        (
            [math],
            {"data": [home / "texts", f"math={home / 'texts' / 'calibration' / 'math.txt'}"]},
            "are both called",
        ),
        ([math], {"teachers": ["poems=math"]}, "no such text, found 'poems'; known are math, stories"),
        ([math], {"teachers": ["stories=code"]}, "no such member; known are base, math"),
        ([math], {"out": home / "none" / "search.yml"}, "cannot be written: no such directory"),
        ([math], {"device": "tpu"}, "unknown device"),
    ]
    for variants, options, message in cases:
        with pytest.raises(InputError) as raised:
            drafted(home, *variants, **options)
        assert message in str(raised.value)
        assert "staged" not in str(raised.value)
        assert not (home / "search.yml").exists()
    (home / "search.yml").write_text("mine")
    with pytest.raises(ConfigError, match=r"search.yml exists; choose another --out"):
        drafted(home)
    assert (home / "search.yml").read_text() == "mine"
    assert [name for name in os.listdir(home) if name.startswith(".")] == []
