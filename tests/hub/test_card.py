"""The model card says what the run's files say, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from gptailor_merge.config import SearchConfig
from gptailor_merge.host.materialize import materialize
from gptailor_merge.hub import card as card_module
from gptailor_merge.hub.bundle import bundle
from gptailor_merge.hub.card import card_of, template
from gptailor_merge.hub.card_metadata import TAGS
from gptailor_merge.hub.release import Release, release_of
from gptailor_merge.objectives.scores import Score
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.report.pictures import Picture
from gptailor_merge.runs.execution import execute
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.record import FOUND
from gptailor_merge.runs.run import Run
from gptailor_merge.runs.stages import StageRow, StageTable
from tests.conftest import write_tasks

# lm-eval and what it imports warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")

REPO = "me/small-model"


def searched(directory: Path, family: dict[str, str], **top: Any) -> Release:
    """Runs a small search and returns its release."""
    document = {
        "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
        "target": {"layers": 3},
        "search": {"budget": 6, "population": 4, "warm_start": []},
        "tune": {"steps": 0},
        "writes": {"tokens": 0},
        **top,
    }
    run = Run(directory / "run")
    execute(SearchConfig.model_validate(document), run, torch.device("cpu"))
    materialize(Recipe.load(run.best), run.model, file=run.best)
    return release_of(run.record(), "mit")


@pytest.fixture(scope="module")
def of_tasks(
    family: dict[str, str], texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """The release of a search with tasks on a test split, a gate, costs, and held-out texts."""
    root = tmp_path_factory.mktemp("of-tasks")
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = write_tasks(root, monkeypatch)
        yield search_of_tasks(family, texts, tasks, root)


def search_of_tasks(family: dict[str, str], texts: dict[str, str], tasks: Path, tmp_path: Path) -> Release:
    of_task = {"kind": "task", "include_path": str(tasks), "split": "test", "few_shot": 0}
    gate = {"kind": "perplexity", "data": texts, "tokens": 32, "sequence_length": 16, "at_most": "9 x base"}
    return searched(
        tmp_path,
        family,
        objectives=[
            {**of_task, "tasks": ["tiny_choice"], "metric": "choice_loss"},
            {"kind": "prefill_latency", "tokens": 8, "weight": 0.001},
        ],
        gates=[gate],
        held_out=[
            {"kind": "perplexity", "data": {"sums": reversed_copy(texts["sums"], tmp_path)}, "tokens": 64},
            {"kind": "decode_latency", "tokens": 8},
        ],
        allow_test_split=True,
    )


@pytest.fixture(scope="module")
def plain(family: dict[str, str], texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release of a search that holds nothing out."""
    return searched(
        tmp_path_factory.mktemp("plain"),
        family,
        objectives=[{"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16}],
    )


def reversed_copy(file: str, directory: Path) -> str:
    """Writes documents that differ from those that are searched on."""
    rows = [json.loads(line)["text"] for line in Path(file).read_text().splitlines()]
    copy = directory / "others.jsonl"
    copy.write_text("".join(json.dumps({"text": row[::-1]}) + "\n" for row in rows))
    return str(copy)


def section(text: str, heading: str) -> str:
    """Returns the text from a heading to the next of its level."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def rows_of(table: str) -> dict[str, list[str]]:
    """First cell of a row -> its other cells, over all tables in a text."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_metadata_passes_the_clients_own_reading(of_tasks: Release) -> None:
    card = ModelCard(str(card_of(of_tasks, REPO)))
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "mit", "text-generation")
    assert set(data.tags) == set(TAGS) == {"mergekit", "merge", "pruned", "gptailor"}
    # Directories are on no Hub.
    assert data.base_model is None
    assert "base_model_relation" not in data
    assert data.model_name == "small-model"
    assert not re.search(r"\{\{ |\{%", card.text)
    assert "\n\n\n" not in card.text


def test_the_model_index_is_of_held_out_scores_only(of_tasks: Release) -> None:
    data = ModelCard(str(card_of(of_tasks, REPO))).data
    with Journal(of_tasks.run.journal) as journal:
        scores = journal.held_out()[FOUND]
        splits = {
            (one.objective, one.task): one.split for one in journal.items() if one.section == "held_out"
        }
    found = {(one.metric_type, one.dataset_name): one for one in data.eval_results}
    assert {name for name, _ in found} == {"choice_loss", "acc", "perplexity"}  # no latency
    for (metric, name), one in found.items():
        assert one.metric_value == float(f"{scores[metric][name].natural:.6g}")
        assert one.dataset_split == splits.get((metric, name))
    assert found["acc", "tiny_choice"].dataset_type == "tiny_choice"
    assert found["perplexity", "sums"].dataset_type == "custom"


def test_tables_hold_the_numbers_of_the_journal(of_tasks: Release) -> None:
    text = card_of(of_tasks, REPO).text
    with Journal(of_tasks.run.journal) as journal:
        held_out = journal.held_out()
    tables = section(text, "Held-out scores").split("### ")[1:]
    assert [table.split(" (")[0] for table in tables] == ["perplexity", "choice_loss", "acc"]
    for table in tables:
        name = table.split(" (")[0]
        rows = rows_of(table)
        for model, scores in held_out.items():
            label = "**this model** (3 layers)" if model == FOUND else f"{model} (5 layers)"
            (score,) = scores[name].values()
            value, _, error = rows[label][0].partition(" ± ")
            half_a_digit = 0.51 * 10.0 ** -len(value.partition(".")[2])
            assert float(value) == pytest.approx(score.natural, abs=half_a_digit)
            if score.natural_error:
                assert float(error) == pytest.approx(score.natural_error, abs=half_a_digit)
        counted = "tokens" if name == "perplexity" else "items"
        assert rows[counted] == [f"{next(iter(held_out[FOUND][name].values())).count:,.0f}"]
    assert "(higher is better)" in tables[2]
    assert all("(lower is better)" in table for table in tables[:2])
    latencies = [line.split(" | ") for line in section(text, "Latency").splitlines() if "latency" in line]
    expected = {
        (model, "decode latency"): Score.total(list(scores["decode_latency"].values())).natural
        for model, scores in held_out.items()
    }
    expected[FOUND, "prefill latency"] = of_tasks.summary.scores["prefill_latency"]["total"]
    found = {
        (model.strip("| ").replace("**this model**", FOUND), what): float(ms.strip(" |"))
        for model, what, ms in latencies
    }
    assert found == pytest.approx(expected, abs=0.005)


def test_stages_stand_below_the_held_out_scores(of_tasks: Release) -> None:
    row = StageRow("tuned", Score(2.5, 8), {"b|c": Score(3.5, 8)}, 1234, 5.0)
    table = StageTable("nats", ("a",), ("b|c",), (row,))
    assert "by stage" not in card_of(of_tasks, REPO).text
    text = card_of(replace(of_tasks, summary=replace(of_tasks.summary, stages=(table,))), REPO).text
    shown = section(text, "Held-out scores")
    assert "\n### nats by stage\n" in shown
    assert "| stage | mean of a | b\\|c (not calibrated on) | tokens | seconds |\n" in shown
    assert "\n| tuned | 2.5000 | 3.5000 | 1,234 | 5 |\n" in shown


def test_one_line_says_how_much_smaller_and_at_what_price(of_tasks: Release) -> None:
    (line,) = [line for line in card_of(of_tasks, REPO).text.splitlines() if line.startswith("**")]
    (_, before), (_, after) = (of_tasks.summary.sizes[name] for name in ("base", FOUND))
    found, base = (of_tasks.held_out[name]["perplexity"]["sums"].natural for name in (FOUND, "base"))
    assert line == (
        f"**3 of 5 layers, {after:,} of {before:,} parameters ({100 * (1 - after / before):.1f} % less); "
        f"no training; held-out perplexity on sums {found:.4g}, the base model's is {base:.4g}.**"
    )


def test_the_data_need_not_be_there_any_more(plain: Release, tmp_path: Path) -> None:
    """A run is published from where it is, whenever."""
    run = Run(tmp_path / "run")
    shutil.copytree(plain.run.path, run.path)
    config = yaml.safe_load(run.config.read_text())
    data = config["objectives"][0]["data"]
    config["objectives"][0]["data"] = {name: f"/gone{file}" for name, file in data.items()}
    run.config.write_text(yaml.safe_dump(config))
    assert release_of(run.record(), "mit").digest == plain.digest


def test_sizes_are_those_of_the_files(of_tasks: Release, family: dict[str, str]) -> None:
    rows = rows_of(section(card_of(of_tasks, REPO).text, "Size"))
    for place, directory in enumerate((Path(family["base"]), of_tasks.run.model)):
        tensors = load_file(directory / "model.safetensors").values()
        assert rows["parameters"][place] == f"{sum(tensor.numel() for tensor in tensors):,}"
        assert rows["bytes of the weights"][place] == f"{sum(tensor.nbytes for tensor in tensors):,}"
        # 2 heads of 4, keys and values, in 2 bytes, in every layer.
        layers = (5, 3)[place]
        assert rows["layers"][place] == str(layers)
        assert rows["bytes of KV cache per token"][place] == str(layers * 2 * 4 * 2 * 2)


def test_removed_layers_are_named_by_their_original_index(plain: Release) -> None:
    text = section(card_of(plain, REPO).text, "What was removed")
    slots = plan(Recipe.load(plain.run.best)).slots
    used = {layer for slot in slots for _, layer in slot.layers}
    gone = ", ".join(str(layer) for layer in range(5) if layer not in used)
    assert f"Of the base model's 5 layers, counted from 0, 2 are gone from all members: **{gone}**." in text
    labels = [label for label in rows_of(text) if re.fullmatch(r"\d+(-\d+)?", label)]
    spans = [[int(end) for end in label.split("-")] for label in labels]
    assert [layer for span in spans for layer in range(span[0], span[-1] + 1)] == [0, 1, 2]


def test_what_is_not_known_is_left_out(plain: Release) -> None:
    card = card_of(plain, REPO)
    assert card.data.eval_results is None
    assert "Held-out" not in card.text
    assert "held-out" not in card.text.split("## Limits")[0]
    assert "## Latency" not in card.text
    assert "![" not in card.text
    assert "[!WARNING]" not in card.text
    assert "beyond these limits" not in card.text


def test_what_was_searched_on_and_how(of_tasks: Release) -> None:
    text = section(card_of(of_tasks, REPO).text, "How it was found")
    counts = of_tasks.summary.counts
    assert f"seed 0: {counts.candidates} candidates ({counts.failures} failed" in text
    assert f"{counts.tokens:,} tokens scored" in text
    with Journal(of_tasks.run.journal) as journal:
        items = {(one.section, one.objective): len(one.ids) for one in journal.items()}
    harness = of_tasks.versions["lm-eval"]
    assert (
        f"- choice_loss on tiny_choice (test split, {items['objectives', 'choice_loss']} items); "
        f"templates and metrics of lm-eval {harness}; 0-shot" in text
    )
    assert "- prefill_latency\n" in text
    assert "in sequences of 16; at most 9 x base" in text
    settings = section(card_of(of_tasks, REPO).text, "Held-out scores")
    assert "- perplexity on sums (others.jsonl); 64 tokens in all, in sequences of 512" in settings
    assert f"acc on tiny_choice (test split, {items['held_out', 'acc']} items)" in settings
    assert "search score minus held-out score is" in settings


def test_a_baselines_model_is_not_said_to_come_of_a_search(plain: Release) -> None:
    assert "A search in the style of [GPTailor]" in card_of(plain, REPO).text
    pruned = replace(plain, summary=replace(plain.summary, baseline="short_gpt"))
    text = card_of(pruned, REPO).text
    assert "The baseline short_gpt decided which layers to remove." in text
    assert "A search in the style" not in text


def test_a_test_split_that_was_searched_on_is_a_warning(of_tasks: Release) -> None:
    text = card_of(of_tasks, REPO).text
    (sentence,) = of_tasks.summary.warnings
    assert f"> [!WARNING]\n> {sentence}\n" in text
    odd = replace(of_tasks, summary=replace(of_tasks.summary, warnings=("id 3 is '<b>[x](y)'",)))
    assert "> [!WARNING]\n> id 3 is '&lt;b>\\[x\\](y)'\n" in card_of(odd, REPO).text


def test_pictures_stand_where_they_belong(of_tasks: Release) -> None:
    pictures = (
        Picture("held-out.png", "Held out", "Scores of all models"),
        Picture("map.png", "The recipe", "Slots by layers"),
        Picture("progress.png", "Progress", "Loss by tokens"),
    )
    text = card_of(of_tasks, REPO, pictures).text
    assert "\n![Slots by layers](pictures/map.png)\n" in section(text, "What was removed")
    assert "\n![Scores of all models](pictures/held-out.png)\n" in section(text, "Held-out scores")
    assert "\n![Loss by tokens](pictures/progress.png)\n\n*Progress*\n" in section(text, "How it was found")
    assert text.count("](pictures/") == 3
    assert "\n\n\n" not in text


def test_pictures_are_drawn_beside_the_card(plain: Release) -> None:
    directory = bundle(plain, REPO)
    text = (directory / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(pictures/(.*?)\)", text)
    assert {"map.png", "progress.png"} <= set(named)
    assert sorted(named) == sorted(file.name for file in (directory / "pictures").iterdir())
    assert all((directory / "pictures" / name).read_bytes().startswith(b"\x89PNG") for name in named)


def test_the_recipe_and_how_to_build_it_again(plain: Release) -> None:
    text = card_of(plain, REPO).text
    written = re.search(r"```yaml\n(.*?)```", section(text, "Recipe"), flags=re.DOTALL)
    assert written is not None
    assert written[1] == plain.recipe.to_yaml()
    assert f"digest `{plain.digest}`" in text
    assert all(f"{name} {version}" in text for name, version in plain.versions.items())
    names = [parent.name for parent in plain.parents]
    given = "".join(f" --member {name}=PATH" for name in names)
    assert f"gptailor reproduce {REPO}{given}\n" in section(text, "Reproduce")


def test_what_llama_cpp_would_run_otherwise_stands_for_its_commands(
    plain: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "llama-cli" in card_of(plain, REPO).text
    monkeypatch.setattr(card_module, "hazards", lambda config: ["it would be wrong"])
    use = section(card_of(plain, REPO).text, "Use")
    assert "llama.cpp:\n\n- it would be wrong\n" in use
    assert "llama-cli" not in use


def test_the_licence_that_was_chosen_is_said_to_be(plain: Release) -> None:
    assert "The licence of this model, mit, was chosen by whoever published it." in card_of(plain, REPO).text


def test_names_do_not_break_tables(plain: Release) -> None:
    rows = rows_of(section(card_of(plain, REPO).text, "What was removed"))
    assert {parent.member for parent in plain.parents} <= set(rows)


def test_the_wheel_holds_the_package_template_and_schemas_and_nothing_else(tmp_path: Path) -> None:
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=template().parent,
    )  # fmt: skip
    wheel = zipfile.ZipFile(tmp_path / done.stdout.strip().splitlines()[-1])
    found = wheel.read("gptailor_merge/model_card_template.md").decode()
    assert found == template().read_text(encoding="utf-8")
    root = template().parent
    sources = [path for path in (root / "gptailor_merge").rglob("*") if "__pycache__" not in path.parts]
    files = {path.relative_to(root).as_posix() for path in sources if path.is_file()}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    brought = ("model_card_template.md", "schemas/recipe.json", "schemas/search.json")
    assert held == {*files, *(f"gptailor_merge/{name}" for name in brought)}
