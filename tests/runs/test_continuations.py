"""What base and best recipe write is what the models write by themselves, and repetition is called out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.host.materialize import materialize
from gptailor_merge.hub.card import card_of
from gptailor_merge.hub.release import release_of, search_digest
from gptailor_merge.models.loading import load_model, load_tokenizer
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.page import content
from gptailor_merge.report.view import view
from gptailor_merge.runs.continuations import Continuation, Continuations, Written
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.run import Run

PROMPTS = ["ONCE UPON", "1+2=", "\u4e16"]
CPU = torch.device("cpu")


def config(family: dict[str, str], texts: dict[str, str], **writes: Any) -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "family": {"base": family["base"], "variants": {"math": family["math"]}},
            "target": {"layers": 3},
            "objectives": [{"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16}],
            "search": {"budget": 2, "population": 2, "warm_start": []},
            "repair": {"finalists": 0},
            "tune": {"steps": 0},
            "writes": {"tokens": 8, "prompts": PROMPTS, **writes},
        }
    )


def alone(directory: Path, prompt: str) -> str:
    """What transformers writes after a prompt, with the model as it is on disk."""
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, torch.float32, CPU)
    ids = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


TOLD = "writing after prompts, with the base and the best recipe"


@pytest.fixture(scope="module")
def done(family: dict[str, str], texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its model."""
    steps: list[str] = []
    directory = tmp_path_factory.mktemp("runs") / "run"
    run = execute(config(family, texts), Run(directory), CPU, on_step=steps.append)
    assert steps.count(TOLD) == 1
    materialize(Recipe.load(run.best), run.model, file=run.best)
    return run


def test_both_write_what_their_models_on_disk_write(family: dict[str, str], done: Run) -> None:
    record = done.record()
    assert record.writes is not None
    assert record.best is not None
    assert record.writes.recipe == record.best.digest
    assert record.writes.prompts == tuple(PROMPTS)
    for row in record.writes.rows[:2]:
        assert row.base.text == alone(Path(family["base"]), row.prompt)
        assert row.found.text == alone(done.model, row.prompt)
        assert (row.base.grams, row.found.grams) == (5, 5)
    shown = done.summary().to_json()["writes"]
    assert [row["found"] for row in shown["prompts"]] == [row.found.text for row in record.writes.rows]
    assert release_of(record, "mit").record()["writes"] == shown


def test_a_resumed_run_writes_again_only_after_other_prompts(
    family: dict[str, str], texts: dict[str, str], done: Run, tmp_path: Path
) -> None:
    """They make no other run of it, and keep its digest on the Hub."""
    run, record = Run(Path(shutil.copytree(done.path, tmp_path / "run"))), done.record()
    steps: list[str] = []
    execute(config(family, texts), run, CPU, resume=True, on_step=steps.append)
    assert TOLD not in steps
    changed = config(family, texts, prompts=["A"])
    execute(changed, run, CPU, resume=True, on_step=steps.append)
    assert TOLD in steps
    again = run.record()
    assert again.writes is not None
    assert again.writes.prompts == ("A",)
    family_on_hub = release_of(record, "mit").family
    assert search_digest(again.settings, family_on_hub) == search_digest(record.settings, family_on_hub)


def test_a_model_that_cannot_write_costs_a_run_nothing_else(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no cache for this layer\n/home/me/model.py")

    monkeypatch.setattr("gptailor_merge.runs.continuations.greedy", fail)
    steps: list[str] = []
    run = execute(config(family, texts), Run(tmp_path / "run"), CPU, on_step=steps.append)
    assert run.record().writes is None
    assert "warning: what the models write is not shown: RuntimeError: no cache for this layer" in steps


def test_wrong_prompts_are_told(family: dict[str, str], texts: dict[str, str], tmp_path: Path) -> None:
    document = {**config(family, texts).document(), "writes": {"prompts": [], "tokens": -1}}
    file = tmp_path / "search.yml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as refused:
        SearchConfig.load(file)
    assert "writes.prompts" in str(refused.value)
    assert "writes.tokens" in str(refused.value)


def written(digest: str, found: int, base: int = 10) -> Continuations:
    """Returns a row of 100 4-grams, of which so many have been there before."""
    text = "<b>x</b> | `y`\n# z\u202e"
    row = Continuation("A\u202eB\n", Written(text, 100, base), Written(text, 100, found))
    return Continuations(digest, 40, (row,))


@pytest.mark.parametrize(
    ("found", "base", "repeats"), [(30, 0, False), (31, 0, True), (60, 45, False), (61, 45, True)]
)
def test_it_repeats_itself_beyond_a_share_and_beyond_the_base(found: int, base: int, repeats: bool) -> None:
    writes = written("d", found, base)
    assert writes.repeats is repeats
    assert bool(writes.warnings) is repeats
    assert (writes.found_share, writes.base_share) == (found / 100, base / 100)


def test_repetition_is_in_the_first_paragraph_of_page_and_card(done: Run, tmp_path: Path) -> None:
    """Texts are a stranger's: they stand in page and card as they are, and form nothing."""
    run = Run(Path(shutil.copytree(done.path, tmp_path / "run")))
    best = run.record().best
    assert best is not None
    with Journal(run.journal) as journal:
        journal.describe(replace(journal.metadata(), writes=written(best.digest, 62)))
    record = run.record()
    said = "62% of the found model’s 4-grams of tokens have been there before in the same text, 10% of the base’s."
    assert record.warnings[-1].startswith(f"The found model repeats itself when it writes: {said}")
    page = content(view(record))
    assert "; it repeats itself when it writes" in page.title
    assert f"repeats itself when it writes: {said}" in page.main.split("</header>")[0]
    assert "&lt;b&gt;x&lt;/b&gt; | `y`\n# z\\u202e" in page.main
    assert "A\\u202eB\n" in page.main
    card = str(card_of(release_of(record, "mit"), "me/small"))
    first = next(part for part in card.split("\n\n") if part.startswith("**"))
    assert "it repeats itself when it writes" in first
    assert "## What it writes" in card
    assert r"| A\\u202eB ↵ | &lt;b>x&lt;/b> \| \`y\` ↵ # z\\u202e |" in card
    # A better recipe that a resumed search finds has not written these texts.
    with Journal(run.journal) as journal:
        journal.describe(replace(journal.metadata(), writes=written("other", 62)))
    assert run.record().writes is None
