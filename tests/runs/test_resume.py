"""A run goes on only with what it was begun with; its numbers belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.runs import claim
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.provenance import Period, changed, continued, sentences
from gptailor_merge.runs.run import Run
from gptailor_merge.versions import environment
from tests.conftest import write_member

WORDS = {"calibration": "ONCE UPON A TIME", "held-out": "A TIME UPON ONCE", "repair": "TIME ONCE A UPON"}


def write_texts(file: Path, words: str) -> None:
    rows = [words[i:] + words[:i] for i in range(len(words))]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a family, texts, a search config and a finished run."""
    root = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("base", "math")):
        write_member(root / name, seed)
    for name, words in WORDS.items():
        write_texts(root / f"{name}.jsonl", words)
    size = {"tokens": 64, "sequence_length": 16}
    document = {
        "family": {"base": "base", "variants": {"math": "math"}},
        "target": {"layers": 3},
        "tune": {"steps": 0},
        "writes": {"tokens": 0},
        "objectives": [{"kind": "kl", "data": {"a": "calibration.jsonl"}, **size}],
        "held_out": [{"kind": "perplexity", "data": {"a": "held-out.jsonl"}, **size}],
        "repair": {"finalists": 1, "data": {"a": "repair.jsonl"}, **size},
        "search": {"budget": 4, "population": 4, "warm_start": []},
    }
    (root / "search.yml").write_text(yaml.safe_dump(document))
    execute(SearchConfig.load(root / "search.yml"), Run(root / "run"), torch.device("cpu"))
    return root


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Run:
    """A copy of the run: a run may lie anywhere."""
    return Run(Path(shutil.copytree(home / "run", tmp_path / "copy")))


@pytest.fixture
def kept(home: Path, tmp_path: Path) -> Iterator[None]:
    """Puts back what the test changes in family and texts."""
    shutil.copytree(home, tmp_path / "kept", ignore=shutil.ignore_patterns("run"))
    yield
    shutil.copytree(tmp_path / "kept", home, dirs_exist_ok=True)
    for file in home.glob("*/chat_template.jinja"):
        file.unlink()


def resume(home: Path, run: Run, **options: Any) -> list[str]:
    """Resumes a run with a larger budget and returns its steps."""
    steps: list[str] = []
    config = SearchConfig.load(home / "search.yml").override(budget=8)
    execute(config, run, torch.device("cpu"), resume=True, on_step=steps.append, **options)
    return steps


def snapshot_of(run: Run) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def nudge(file: Path) -> None:
    """Changes one number of one tensor; size and names of the file stay."""
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def set_key(file: Path, **keys: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "member math: model.safetensors": lambda home: nudge(home / "math" / "model.safetensors"),
    "member base: model.safetensors": lambda home: nudge(home / "base" / "model.safetensors"),
    "member math: config.json": lambda home: set_key(home / "math" / "config.json", rms_norm_eps=0.5),
    "member math: generation_config.json": lambda home: set_key(
        home / "math" / "generation_config.json", repetition_penalty=1.5
    ),
    "member base: tokenizer_config.json": lambda home: set_key(
        home / "base" / "tokenizer_config.json", unk_token="?"
    ),
    "member base: chat_template.jinja": lambda home: (home / "base" / "chat_template.jinja").write_text("x"),
    "objectives: kl on a": lambda home: write_texts(home / "calibration.jsonl", "ONCE MORE A TIME"),
    "held_out: perplexity on a": lambda home: write_texts(home / "held-out.jsonl", "ANOTHER TIME ALSO"),
    "repair: a": lambda home: write_texts(home / "repair.jsonl", "MORE TIME ALSO A"),
}


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", CHANGES)
def test_other_models_or_data_are_refused_by_name(name: str, home: Path, run: Run) -> None:
    CHANGES[name](home)
    before = snapshot_of(run)
    with pytest.raises(ConfigError, match=rf"changed since then: {name}\. Put back what it was begun with"):
        resume(home, run)
    assert snapshot_of(run) == before


@pytest.mark.usefixtures("kept")
def test_what_does_not_change_a_score_may_change(home: Path, run: Run) -> None:
    (home / "math" / "README.md").write_text("A card.")
    (home / "math" / "model.safetensors").touch()
    with (home / "held-out.jsonl").open("a") as file:
        file.write('{"text": "MORE THAN IS TAKEN"}\n')
    before = run.summary()
    steps = resume(home, run)
    assert not [step for step in steps if step.startswith("note")]
    after = run.summary()
    assert after.warnings == before.warnings == ()
    assert after.counts.candidates == 8
    assert {name: after.held_out[name] for name in ("base", "math")} == {
        name: before.held_out[name] for name in ("base", "math")
    }
    with Journal(run.journal) as journal:
        assert journal.metadata().history == (Period(0, environment()),)


def test_other_versions_are_told_and_kept(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = environment()
    monkeypatch.setattr(claim, "environment", lambda: {**begun, "torch": "99.0"})
    with Journal(run.journal) as journal:  # so that one sees whether members are scored again
        journal.record_held_out(
            "base", {"perplexity": {"a": next(iter(journal.held_out()["math"]["perplexity"].values()))}}
        )
    told = (
        f"resumed after 4 candidates with other versions (torch {begun['torch']} → 99.0): scores from before "
        "and after may differ in their last digits"
    )
    assert f"note: {told}" in resume(home, run)
    record = run.record()
    assert record.warnings == (told,)
    assert record.versions == begun
    assert record.held_out["base"] != record.held_out["math"]
    with Journal(run.journal) as journal:
        assert journal.metadata().history == (Period(0, begun), Period(4, {**begun, "torch": "99.0"}))


def test_a_run_that_recorded_nothing_goes_on_with_a_note(home: Path, run: Run) -> None:
    with Journal(run.journal) as journal:
        journal._db.execute("DELETE FROM meta WHERE key IN ('inputs', 'history')")
    assert run.summary().warnings == ()
    (note,) = [step for step in resume(home, run) if step.startswith("note: ")]
    assert note.startswith("note: the first 4 candidates come from a version that did not record what models")
    assert run.summary().warnings == (note.removeprefix("note: "),)
    assert not [step for step in resume(home, run) if step.startswith("note: ")]


def test_the_history_of_a_run_has_the_periods_in_which_something_was_computed() -> None:
    first, second = {"torch": "1"}, {"torch": "2"}
    history = continued((), 0, first)
    assert history == (Period(0, first),)
    assert continued(history, 9, first) == history
    assert continued(history, 0, second) == (Period(0, second),)
    later = continued(history, 9, second)
    assert later == (Period(0, first), Period(9, second))
    assert continued(later, 9, first) == history
    assert sentences(history) == ()
    (sentence,) = sentences(later)
    assert "after 9 candidates with other versions (torch 1 → 2)" in sentence
    unrecorded = (Period(0, first, recorded=False),)
    assert continued(unrecorded, 4, first) == (*unrecorded, Period(4, first))
    assert changed({"x": "1"}, {"x": "1"}) == []
    assert changed({}, {"x": "1"}) == ["x"]


def test_moved_runs_find_their_maps_and_keep_what_the_user_put_there(home: Path, run: Run) -> None:
    mine = [
        run.repairs / "mine" / "repair-1.safetensors",
        run.path / "pareto" / "mine.yml",
        run.path / "notes",
    ]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    half = run.path / ".best.yml.gptailor-staged-1"
    half.write_text("half")
    assert str(home / "run") not in run.best.read_text() + "".join(r.recipe for r in run.record().repairs)
    resume(home, run)
    assert [file.read_text() for file in mine] == ["mine"] * 3
    assert not half.exists()


def test_a_run_keeps_the_size_of_its_batches_and_its_threads(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that leaves the size open goes on with the one that was found when the run was begun."""
    assert SearchConfig.load(run.config).batch_tokens == 4096
    with Journal(run.journal) as journal:
        threads = journal.metadata().threads
    assert threads is not None
    recorded = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump({**recorded, "batch_tokens": 32}))
    steps = resume(home, run)
    assert not [step for step in steps if "threads" in step]
    assert SearchConfig.load(run.config).batch_tokens == 32
    config = SearchConfig.load(home / "search.yml").model_copy(update={"batch_tokens": 64})
    with pytest.raises(ConfigError, match="begun with another config; batch_tokens differ"):
        execute(config, run, torch.device("cpu"), resume=True)
    with Journal(run.journal) as journal:
        journal.describe(replace(journal.metadata(), threads=threads + 1))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    (note,) = (step for step in resume(home, run) if "threads" in step)
    assert note.startswith(f"note: from now on {torch.get_num_threads()} threads compute instead of")
