"""`gptailor push` puts a run on the Hub, or refuses to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hf_xet
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tests.hub.conftest import REPO, USER, Worker, WriteConfig
from tests.hub.stand_in import TOKEN, Commit, Fault, StandIn

FILES = {
    ".gitattributes", "README.md", "config.json", "generation_config.json", "gptailor_run.json",
    "mergekit_config.yml", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
"""The files of a published model, besides the pictures."""
COMMIT = r"POST /api/models/.*/commit/"


def files_at(commit: Commit) -> set[str]:
    return {path for path in commit.files if not path.startswith("pictures/")}


def test_a_run_is_published_with_a_tag_and_again_without_a_commit(
    hub: StandIn, by_lfs: Worker, run: Path
) -> None:
    done = by_lfs("push", run, REPO)
    assert done.code == 0, done.err
    repository = hub.repositories[REPO]
    assert files_at(repository.main) == FILES
    assert hub.content(REPO, "model.safetensors") == (run / "model" / "model.safetensors").read_bytes()
    record = json.loads(hub.content(REPO, "gptailor_run.json"))
    assert list(repository.tags) == [record["digest"]]
    assert repository.tags[record["digest"]] == repository.main
    assert repository.main.title == f"3 layers, recipe {record['digest']}"
    assert done.out == (
        f"published  {hub.endpoint}/{REPO}/commit/{repository.main.sha}  (tag {record['digest']})\n"
    )
    assert not repository.private
    by_us = [one for one in hub.requests if "gptailor-merge/" in one.headers["user-agent"]]
    assert len(by_us) > 5

    hub.requests.clear()
    done = by_lfs("push", run, REPO)
    assert done.code == 0, done.err
    assert done.out.startswith("unchanged  ")
    assert not hub.asked(COMMIT)
    assert not hub.asked("PUT")


def test_a_later_state_of_a_run_replaces_the_earlier(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    """Files that only the earlier push had are deleted; files that people added stay."""
    hub.fill(
        REPO,
        {
            "gptailor_run.json": record_of(by_lfs, run),
            "model-00001-of-00002.safetensors": b"old",
            "notes.md": b"mine",
        },
    )
    assert by_lfs("push", run, REPO, "--commit-message", "a longer search").code == 0
    assert files_at(hub.repositories[REPO].main) == {*(FILES - {".gitattributes"}), "notes.md"}
    assert hub.repositories[REPO].main.title == "a longer search"


def test_a_tag_stays_with_the_first_commit_of_its_recipe(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    assert by_lfs("push", run, REPO).code == 0
    repository = hub.repositories[REPO]
    first = repository.main
    done = by_lfs("push", run, REPO, "--license", "mit")
    assert (done.code, "(tag" in done.out) == (0, False)
    assert repository.main != first
    assert list(repository.tags.values()) == [first]


def record_of(worker: Worker, run: Path) -> bytes:
    assert worker("push", run, REPO, "--dry-run").code == 0
    return (run / "hub" / "gptailor_run.json").read_bytes()


def test_what_others_filled_is_not_overwritten_unless_told(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    record = json.loads(record_of(by_lfs, run))
    others = {
        "a person's": {"README.md": b"my model", "weights.bin": b"1"},
        "another run's": {"gptailor_run.json": json.dumps({**record, "search": "0" * 16}).encode()},
        "a broken one": {"gptailor_run.json": b"{"},
    }
    for files in others.values():
        repository = hub.fill(REPO, {".gitattributes": b"", **files})
        before = repository.main
        done = by_lfs("push", run, REPO)
        assert done.code == 2
        assert f"{REPO} was filled by another run or person ({', '.join(files)}); choose" in done.err
        assert repository.main == before
    hub.fill(REPO, {".gitattributes": b"", **others["a person's"]})
    assert by_lfs("push", run, REPO, "--overwrite").code == 0
    assert files_at(hub.repositories[REPO].main) == FILES


def test_a_pull_request_changes_nothing_else(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    theirs = hub.fill("stranger/model", {"weights.bin": b"1", "README.md": b"theirs"})
    before = theirs.main
    done = by_lfs("push", run, "stranger/model", "--create-pr")
    assert done.code == 0, done.err
    assert done.out == f"published  {hub.endpoint}/stranger/model/discussions/1\n"
    assert (theirs.main, theirs.tags) == (before, {})
    assert files_at(theirs.refs["refs/pr/1"][-1]) == FILES - {".gitattributes"}
    # To go on with it, by its reference.
    done = by_lfs("push", run, "stranger/model", "--revision", "refs/pr/1")
    assert done.out.startswith("unchanged  ")
    assert list(theirs.refs) == ["main", "refs/pr/1"]


def test_a_branch_is_made_and_is_a_place_of_its_own(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    repository = hub.fill(REPO, {"weights.bin": b"1"})
    before = repository.main
    done = by_lfs("push", run, REPO, "--revision", "layers-3")
    assert done.code == 0, done.err
    assert repository.main == before
    assert files_at(repository.refs["layers-3"][-1]) == FILES - {".gitattributes"}


def test_a_private_repository(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    assert by_lfs("push", run, REPO, "--private").code == 0
    assert hub.repositories[REPO].private
    hub.repositories[REPO].private = False
    done = by_lfs("push", run, REPO, "--private")
    assert (done.code, "exists and is public" in done.err) == (2, True)


@pytest.mark.filterwarnings("ignore")
def test_by_xet(hub: StandIn, by_xet: Worker, run: Path, tmp_path: Path) -> None:
    """The weights go to a store of chunks, and come back from it."""
    hub.xet_store = str(tmp_path / "store")
    weights = run / "model" / "model.safetensors"
    assert by_xet("push", run, REPO, "--create-pr").code == 0
    assert list(hub.repositories[REPO].refs) == ["main", "refs/pr/1"]
    done = by_xet("push", run, REPO)
    assert done.code == 0, done.err
    assert not hub.objects
    assert any(file.is_file() for file in (tmp_path / "store").rglob("*"))
    for path, blob in hub.repositories[REPO].main.files.items():
        if blob.large:
            (found,) = hf_xet.hash_files([str(run / "hub" / path)])
            hub.xet_hashes[blob.sha256] = found.hash
    commits = len(hub.asked(COMMIT))
    assert by_xet("push", run, REPO).out.startswith("unchanged  ")
    assert len(hub.asked(COMMIT)) == commits
    code = "import huggingface_hub as h\n"
    downloaded = Path(by_xet.run_code(f"{code}result = h.snapshot_download({REPO!r})"))
    assert (downloaded / "model.safetensors").read_bytes() == weights.read_bytes()
    assert not hub.asked(r"GET /me/small/resolve/.*safetensors")


def test_a_dry_run_writes_and_lists_everything_and_asks_nobody(
    hub: StandIn, by_lfs: Worker, run: Path
) -> None:
    done = by_lfs("push", run, REPO, "--dry-run", HF_TOKEN=None)
    assert done.code == 0, done.err
    written = {str(file.relative_to(run / "hub")) for file in (run / "hub").rglob("*") if file.is_file()}
    assert {path for path in written if not path.startswith("pictures/")} == FILES - {".gitattributes"}
    listed = {line.split()[-1] for line in done.out.splitlines()[:-1]}
    assert listed == written
    assert done.out.splitlines()[-1].endswith(f"bytes in {run / 'hub'}; nothing was uploaded")
    assert not hub.requests
    assert (run / "hub" / "model.safetensors").samefile(run / "model" / "model.safetensors")


def test_no_path_user_name_or_token_is_published(
    hub: StandIn, by_lfs: Worker, run: Path, members: dict[str, Path]
) -> None:
    done = by_lfs("push", run, REPO)
    secrets = [TOKEN, USER, str(run), str(members["base"].parent), "/tmp", str(by_lfs.home)]
    for path, blob in hub.repositories[REPO].main.files.items():
        content = blob.content or b""
        if path.endswith(".safetensors"):
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        assert not [secret for secret in secrets if secret.encode() in content], path
    for secret in (TOKEN, USER):
        assert secret not in done.out + done.err + by_lfs.log.read_text()
    assert all(TOKEN not in one.path and TOKEN.encode() not in one.body for one in hub.requests)


def test_what_names_a_path_is_not_published(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    for file, damage in (("tokenizer_config.json", by_lfs.home), ("model.safetensors", TOKEN)):
        broken = run.parent / file
        shutil.copytree(run, broken)
        if file == "model.safetensors":
            tensors = load_file(broken / "model" / file)
            save_file(tensors, broken / "model" / file, metadata={"format": "pt", "made": str(damage)})
        else:
            document = json.loads((broken / "model" / file).read_text())
            (broken / "model" / file).write_text(json.dumps({**document, "name_or_path": f"{damage}/x"}))
        done = by_lfs("push", broken, REPO)
        assert done.code == 1
        assert f"{file} names a path of this machine or the token, and was not published" in done.err
        assert not hub.repositories
        assert not (broken / "hub").exists()


def test_a_model_that_is_not_sound_or_not_the_runs_never_leaves(
    hub: StandIn, by_lfs: Worker, run: Path
) -> None:
    tensors = load_file(run / "model" / "model.safetensors")
    broken = {**tensors, "model.norm.weight": tensors["model.norm.weight"] * float("nan")}
    save_file(broken, run / "model" / "model.safetensors", metadata={"format": "pt"})
    done = by_lfs("push", run, REPO)
    assert done.code == 1
    assert "is not sound and was not published: values: model.norm.weight holds values" in done.err
    (run / "model" / "mergekit_config.yml").write_text("another")
    done = by_lfs("push", run, REPO)
    assert (done.code, "is not the model of" in done.err) == (2, True)
    shutil.rmtree(run / "model")
    done = by_lfs("push", run, REPO)
    assert (done.code, f"write it with  gptailor merge {run / 'best.yml'}" in done.err) == (2, True)
    assert not hub.repositories


def test_the_card_passes_the_hubs_own_reading(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    assert by_lfs("push", run, REPO).code == 0
    card = ModelCard(hub.content(REPO, "README.md").decode())
    assert (card.data.license, card.data.language, card.data.library_name) == (
        "apache-2.0", ["en"], "transformers",
    )  # fmt: skip
    assert hub.asked("POST /api/validate-yaml")


def test_a_search_that_could_not_be_published_does_not_begin(
    hub: StandIn, by_lfs: Worker, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config("plain")
    hub.fill("me/taken", {"weights.bin": b"1"})
    asked = ("--out", tmp_path / "run", "--device", "cpu")
    into = (*asked, "--push-to-hub", "--hub-model-id")
    for arguments, environment, sentence in (
        ((*into, "me/taken"), {}, "me/taken was filled by another run or person"),
        ((*into, "you/small"), {}, "the token may not write to you"),
        ((*into, "guests/small"), {}, "the token may not write to guests"),
        ((*into, REPO), {"HF_TOKEN": None}, "there is no token for the Hub; run  hf auth login"),
        (
            (*into, REPO, "--license", "bsd-4"),
            {},
            "--license: the Hub does not take 'bsd-4': \"license\" must",
        ),
        ((*into, "small"), {}, "expected a repository's name, USER/NAME, found 'small'"),
        ((*into, REPO, "--no-model"), {}, "--push-to-hub publishes the model; leave out --no-model"),
        ((*asked, "--push-to-hub"), {}, "--push-to-hub needs --hub-model-id USER/NAME"),
        ((*asked, "--hub-model-id", REPO), {}, "--hub-model-id is for --push-to-hub, which is not given"),
    ):
        done = by_lfs(config, *arguments, evolve=True, **environment)
        assert done.code in (1, 2)
        assert f"Error: {sentence}" in done.err
    assert not (tmp_path / "run").exists()
    assert list(hub.repositories) == ["me/taken"]


def test_a_licence_that_is_not_known_stops_before_the_search(
    hub: StandIn, by_lfs: Worker, write_config: WriteConfig, members: dict[str, Path], tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(members["code"], tmp_path / "bare"))
    (bare / "README.md").unlink()
    variants = {"math": str(members["math"]), "code": str(bare)}
    config = write_config("bare", family={"base": str(members["base"]), "variants": variants})
    into = ("--out", tmp_path / "run", "--device", "cpu", "--push-to-hub", "--hub-model-id", REPO)
    done = by_lfs(config, *into, evolve=True)
    assert done.code == 2
    assert "no licence is stated by bare; expected one in the metadata of its README.md; read" in done.err
    assert not hub.requests
    assert not (tmp_path / "run").exists()


def test_a_token_that_may_only_read(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    hub.who["auth"]["accessToken"]["role"] = "read"
    done = by_lfs("push", run, REPO)
    assert (done.code, "Error: the token may only read; make one with write" in done.err) == (1, True)
    assert not (run / "hub").exists()


def test_the_repository_changes_while_the_model_is_checked(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    repository = hub.fill(REPO, {".gitattributes": b""})

    def somebody_else() -> None:
        repository.refs["main"].append(
            hub.commit({**repository.main.files, "notes.md": repository.main.files[".gitattributes"]})
        )

    hub.faults.append(Fault(r"POST .*/preupload/", then=somebody_else))
    done = by_lfs("push", run, REPO)
    assert done.code == 1
    assert f"{REPO} was changed by someone else meanwhile (it says: A commit has happened since" in done.err
    assert "notes.md" in repository.main.files
    assert "model.safetensors" not in repository.main.files
