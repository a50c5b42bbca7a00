"""A model goes to the Hub and comes back: it has the same logits, and is built again with the same tensors."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptailor_merge.composing.editing import save_gains
from gptailor_merge.composing.norms import with_gains
from gptailor_merge.config import SearchConfig
from gptailor_merge.host.materialize import materialize
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.planning.writing import recipe_of
from gptailor_merge.recipe.edits import gains_files
from gptailor_merge.recipe.plan import NORMS, Edit
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.runs.journal import Journal
from gptailor_merge.search.candidates import Status
from tests.conftest import DEMO
from tests.hub.conftest import REPO, Worker, WriteConfig
from tests.hub.stand_in import StandIn

SENTENCE = "ONCE UPON A TIME"

FROM_THE_HUB = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({REPO!r})
model = AutoModelForCausalLM.from_pretrained({REPO!r}, dtype="auto")
with torch.inference_mode():
    logits = model(**tokenizer({SENTENCE!r}, return_tensors="pt")).logits
result = logits.float().tolist()
"""


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def assert_it_comes_back(by_lfs: Worker, model: Path) -> None:
    """from_pretrained gives the logits of the model that was published."""
    made = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    inputs = AutoTokenizer.from_pretrained(model)(SENTENCE, return_tensors="pt")
    with torch.inference_mode():
        expected = made(**inputs).logits.float()
    assert torch.equal(torch.tensor(by_lfs.run_code(FROM_THE_HUB)), expected)


def test_a_search_is_published_loaded_and_built_again(
    hub: StandIn, by_lfs: Worker, write_config: WriteConfig, members: dict[str, Path], tmp_path: Path
) -> None:
    """One command searches and publishes; two members are on the Hub, one is a directory."""
    revisions = {
        f"org/{name}": hub.fill(f"org/{name}", files_of(members[name])).main.sha for name in ("base", "math")
    }
    variants = {"math": f"org/math@{revisions['org/math']}", "code": str(members["code"])}
    config = write_config("on-the-hub", family={"base": "org/base", "variants": variants})
    run = tmp_path / "run"
    into = ("--push-to-hub", "--hub-model-id", REPO, "--hub-private-repo")
    done = by_lfs(config, "--out", run, "--device", "cpu", *into, evolve=True)
    assert done.code == 0, done.err
    assert f"published  {hub.endpoint}/{REPO}/commit/" in done.out
    assert hub.repositories[REPO].private

    assert_it_comes_back(by_lfs, run / "model")

    # The published recipe says all that it takes to build the model again.
    recipe = yaml.safe_load(hub.content(REPO, "mergekit_config.yml"))
    named = {source["model"] for part in recipe["slices"] for source in part["sources"]}
    pinned = {f"{name}@{revision}" for name, revision in revisions.items()}
    assert {recipe["base_model"], *named} <= {*pinned, "./tiny-code"}
    card = ModelCard(hub.content(REPO, "README.md").decode())
    used = {model.split("@")[0] for model in (recipe["base_model"], *named)}
    assert set(card.data.base_model) == used - {"./tiny-code"}
    assert card.data["base_model_revisions"] == {name: revisions[name] for name in card.data.base_model}

    record = json.loads(hub.content(REPO, "gptailor_run.json"))
    local = ("--member", f"tiny-code={members['code']}") if "./tiny-code" in named else ()
    done = by_lfs("reproduce", REPO, *local)
    assert done.code == 0, done.err
    tensors = len(load(hub.content(REPO, "model.safetensors")))
    assert done.out == f"{REPO}: equal, {tensors} tensors and the config\n"
    done = by_lfs("reproduce", REPO, *local, "--revision", record["digest"], "--out", tmp_path / "again")
    assert (done.code, done.out) == (0, f"{REPO}: equal, {tensors} tensors and the config\n")
    published = hub.content(REPO, "model.safetensors")
    rebuilt = load((tmp_path / "again" / "model.safetensors").read_bytes())
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in load(published).items())


def test_the_demo_goes_to_the_hub_and_back(hub: StandIn, by_lfs: Worker, tmp_path: Path) -> None:
    """The trained family: its best recipe is repaired, tuned and healed, and published with all its files."""
    run, demo = tmp_path / "run", tmp_path / "search.yml"
    document = SearchConfig.load(DEMO / "search.yml").document()
    refined = {"repair": {"finalists": 2, "tokens": 8192}, "tune": {"steps": 2, "tokens": 8192}}
    refined["writes"] = {"tokens": 4}
    train = {}
    for name in ("stories", "maths"):
        train[name] = str(tmp_path / f"{name}.jsonl")
        lines = (DEMO / "calibration" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        Path(train[name]).write_text("".join(lines[-40:]))  # what is scored comes first
    heal = {"tokens": 2048, "data": train, "lora": 4, "sequence_length": 64, "rate": 0.004}
    for measured in document["held_out"]:
        measured["tokens"] = 4096
    demo.write_text(yaml.safe_dump({**document, **refined, "heal": heal}))
    into = ("--push-to-hub", "--hub-model-id", REPO, "--license", "apache-2.0")
    done = by_lfs(demo, "--out", run, "--device", "cpu", "--budget", "32", *into, evolve=True)
    assert done.code == 0, done.err
    assert_it_comes_back(by_lfs, run / "model")
    recipe = yaml.safe_load(hub.content(REPO, "mergekit_config.yml"))
    maps = [part["parameters"]["repair"] for part in recipe["slices"] if "repair" in part["parameters"]]
    assert maps
    assert all(load(hub.content(REPO, file)) for file in maps)
    assert set(maps) == {file for file in hub.repositories[REPO].main.files if file.startswith("repair/")}
    assert recipe["parameters"]["gains"] in hub.repositories[REPO].main.files
    assert recipe["parameters"]["adapter"] == "adapter"
    published = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert {file for file in hub.repositories[REPO].main.files if file.startswith("adapter/")} == published
    card = hub.content(REPO, "README.md").decode()
    assert re.search(r"The adapter was trained on [\d,]+ tokens of ", card)
    assert re.search(r"\n\| healed \| [^\n]+\|\n", card)
    assert json.loads(hub.content(REPO, "gptailor_run.json"))["healed"]["rank"] == 4
    everything = [hub.content(REPO, file) for file in hub.repositories[REPO].main.files]
    assert not any(str(tmp_path).encode() in content for content in everything)
    members = [path for path in (DEMO / "family").iterdir() if str(path) in (run / "best.yml").read_text()]
    named = [text for path in members for text in ("--member", f"{path.name}={path}")]
    done = by_lfs("reproduce", REPO, *named)
    assert done.code == 0, done.err
    tensors = len(load(hub.content(REPO, "model.safetensors")))
    assert done.out == f"{REPO}: equal, {tensors} tensors and the config\n"


def local_members(members: dict[str, Path]) -> list[str]:
    return [text for name in members for text in ("--member", f"tiny-{name}={members[name]}")]


def used_members(run: Path, members: dict[str, Path]) -> dict[str, Path]:
    """The members that the found recipe names."""
    recipe = (run / "best.yml").read_text()
    return {name: path for name, path in members.items() if str(path) in recipe}


def test_what_was_changed_is_named(hub: StandIn, by_lfs: Worker, run: Path, members: dict[str, Path]) -> None:
    assert by_lfs("push", run, REPO).code == 0
    repository = hub.repositories[REPO]
    tensors = load(hub.content(REPO, "model.safetensors"))
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    tensors["extra"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    config = json.loads(hub.content(REPO, "config.json"))
    edited = {
        "model.safetensors": save(tensors, {"format": "pt"}),
        "config.json": json.dumps({**config, "rms_norm_eps": 0.5, "transformers_version": "0"}).encode(),
    }
    files = {**repository.main.files, **hub.fill("scratch/one", edited).main.files}
    repository.refs["main"].append(hub.commit(files))
    done = by_lfs("reproduce", REPO, *local_members(used_members(run, members)))
    assert done.code == 1
    assert done.out.splitlines() == [
        "extra: is only in the published model",
        "model.layers.1.mlp.up_proj.weight: is not in the published model",
        "model.norm.weight: differs",
        "config.json: rms_norm_eps differs",
        f"{REPO}: not equal, 4 differences",
        "a member may be another one, or a library of another version than the card says",
    ]


def test_local_members_must_be_given_and_known(
    hub: StandIn, by_lfs: Worker, run: Path, members: dict[str, Path], tmp_path: Path
) -> None:
    assert by_lfs("push", run, REPO).code == 0
    used = used_members(run, members)
    for arguments, sentence in (
        ((), "members that are on no Hub; say where they are: --member tiny-base=PATH"),
        ((*local_members(used), "--member", f"other={tmp_path}"), "--member other: the recipe names no such"),
        (("--member", "tiny-base"), "--member: expected NAME=PATH, found 'tiny-base'"),
        (("--member", f"tiny-base={tmp_path / 'no'}"), "--member tiny-base: no such directory"),
        (("--out", run), f"{run} exists and is not an empty directory"),
    ):
        done = by_lfs("reproduce", REPO, *arguments)
        assert (done.code, sentence in done.err) == (2, True), done.err


def test_what_cannot_be_pulled_back(hub: StandIn, by_lfs: Worker) -> None:
    hub.fill("you/plain", {"config.json": b"{}", "model.safetensors": b"0"})
    done = by_lfs("reproduce", "you/plain")
    assert (done.code, "you/plain holds no mergekit_config.yml; expected a model" in done.err) == (2, True)
    done = by_lfs("reproduce", "you/nothing")
    assert (done.code, "the Hub has no you/nothing, or no such revision" in done.err) == (1, True)
    done = by_lfs("reproduce", "you/plain", "--revision", "no")
    assert (done.code, "the Hub has no you/plain, or no such revision" in done.err) == (1, True)


@pytest.fixture
def elsewhere(tmp_path: Path, members: dict[str, Path]) -> dict[str, Path]:
    """The members, copied to where somebody else has them, under other names."""
    return {
        name: Path(shutil.copytree(path, tmp_path / "others" / f"their-{name}"))
        for name, path in members.items()
    }


def fit_norms(run: Path) -> None:
    """Gives the norms of a run's best recipe gains that no member has, as if a search had tuned it."""
    recipe = Recipe.load(run / "best.yml")
    made, family = check_with_family(recipe)
    width = family.base.config["hidden_size"]
    layers = {
        f"layers.{layer}.input_layernorm.weight": torch.full((width,), 0.5 + layer) for layer in made.kept
    }
    edits = []
    for name, gains in (("in", layers), ("out", {"model.norm.weight": torch.full((width,), 1.5)})):
        (run / name).mkdir()
        file, digest = save_gains(gains, run / name, "gains.safetensors")
        edits.append(Edit(NORMS, digest, str(file)))
    fitted = replace(with_gains(made, edits[0]), gains=edits[1])
    text = recipe_of(fitted, family.depth).to_yaml()
    (run / "best.yml").write_text(text)
    with Journal(run / "journal.db") as journal:
        best = journal.best()
        assert best is not None
        assert best.loss is not None
        tuned = replace(best, digest=fitted.digest, recipe=text, loss=best.loss - 1, status=Status.TUNED)
        journal.record_tuning(best.digest, tuned)
    materialize(Recipe.load(run / "best.yml"), run / "model", file=run / "best.yml", replace=True)


def test_members_may_be_anywhere(
    hub: StandIn, by_lfs: Worker, run: Path, members: dict[str, Path], elsewhere: dict[str, Path]
) -> None:
    """Also where the recipe has gains of norms, here in two files of one name."""
    fit_norms(run)
    done = by_lfs("push", run, REPO)
    assert done.code == 0, done.err
    recipe = Recipe.from_mapping(yaml.safe_load(hub.content(REPO, "mergekit_config.yml")))
    named = {"gains/gains.safetensors", "gains/1-gains.safetensors"}
    assert set(gains_files(recipe)) == named
    assert {file for file in hub.repositories[REPO].main.files if file.startswith("gains/")} == named
    assert recipe.parameters.gains == "gains/1-gains.safetensors"
    assert list(load(hub.content(REPO, recipe.parameters.gains))) == ["model.norm.weight"]
    card = hub.content(REPO, "README.md").decode()
    assert "The gains of norms in 3 of its 3 layers and outside the layers are fitted numbers" in card
    assert "Merge weights and gains of norms were fitted to calibration texts by gradient" in card
    assert "merge weights and gains of norms fitted by gradient, no other training; held-out" in card
    assert "No weight was trained" not in card
    assert "1 tuned at the end" in card
    assert card.count(", with fitted norms") > 1
    used = {name: elsewhere[name] for name in used_members(run, members)}
    done = by_lfs("reproduce", REPO, *local_members(used))
    assert done.code == 0, done.err + done.out


def test_a_member_in_another_format_is_refused(
    hub: StandIn, by_lfs: Worker, write_config: WriteConfig, members: dict[str, Path], tmp_path: Path
) -> None:
    config = (members["base"] / "config.json").read_bytes()
    hub.fill("org/old", {"config.json": config, "pytorch_model.bin": b"0"})
    family = {"base": "org/old", "variants": {"math": str(members["math"])}}
    done = by_lfs(write_config("old", family=family), "--out", tmp_path / "run", evolve=True)
    assert (done.code, "org/old: has no safetensors file on the Hub" in done.err) == (2, True), done.err
