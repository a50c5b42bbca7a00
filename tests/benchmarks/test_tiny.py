"""Every benchmark runs in its `--tiny` form, and its table or file has what it promises."""

from __future__ import annotations

import ast
import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HELPERS = ("common", "paper_search", "quality_report")
"""Modules that are no program."""

DOMAINS = ("stories", "encyclopedia", "maths", "code")


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Benchmarks import each other as they do when they are run."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(name: str, *arguments: object) -> Result:
    """Runs a benchmark in this process."""
    program = typer.Typer()
    program.command()(importlib.import_module(name).main)
    done = CliRunner().invoke(program, ["--tiny", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def figures(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_demo_prints_its_table(tmp_path: Path) -> None:
    done = run("demo", "--out", tmp_path / "run")
    for row in ("base", "best contiguous block dropped", "the same search, not repaired"):
        assert row in done.stdout
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_composing_is_faster_than_writing(tmp_path: Path) -> None:
    run("compose", "--json", tmp_path / "figures.json")
    assert figures(tmp_path / "figures.json")["ratio"] > 1


def test_all_arms_of_the_evaluator_give_the_same_losses(tmp_path: Path) -> None:
    run("evaluator", "--json", tmp_path / "figures.json")
    report = figures(tmp_path / "figures.json")
    assert set(report["arms"]) == {"disk", "rebuild", "plain", "ours", "racing"}
    assert report["largest_relative_difference"] < 1e-6
    assert report["racing"]["same_best"] == report["racing"]["generations"]


def test_more_tokens_of_the_teacher_miss_less(tmp_path: Path) -> None:
    run("kl_top_k", "--json", tmp_path / "figures.json")
    missed = [row["largest_share_missed"] for row in figures(tmp_path / "figures.json").values()]
    assert missed == sorted(missed, reverse=True)
    assert missed[-1] == 0.0


def test_operations_and_optimizers_are_compared(tmp_path: Path) -> None:
    for group, arm in (("operations", "parts"), ("optimizers", "1 parent")):
        file = tmp_path / f"{group}.json"
        run("operations", "--group", group, "--json", file)
        runs = figures(file)
        assert arm in runs
        assert all(result["0"]["candidates"] == 8 for result in runs.values())
    run("steps", "--runs", tmp_path / "operations.json", "--json", tmp_path / "steps.json")
    assert set(figures(tmp_path / "steps.json")["0"]) >= {"another layer removed", "parts"}


def test_steps_need_no_runs() -> None:
    assert "another member selected" in run("steps").stdout


def test_edits_repair_a_block_and_leave_parts_out(tmp_path: Path) -> None:
    run("edits", "--json", tmp_path / "figures.json")
    results = figures(tmp_path / "figures.json")
    assert len(results["block"]["losses"]) == 3
    size, left = results["greedy"]["not_zero"]
    assert left <= size


def test_a_front_is_compared_with_random_recipes(tmp_path: Path) -> None:
    run("pareto", "--out", tmp_path / "run", "--json", tmp_path / "figures.json")
    rows = figures(tmp_path / "figures.json")["sizes"]
    assert rows
    assert all(set(row["found"]) == set(row["random"]) for row in rows)


def test_lm_eval_and_ours_give_the_same_accuracies(tmp_path: Path) -> None:
    run("tasks", "--json", tmp_path / "figures.json")  # ends with an error where they differ
    report = figures(tmp_path / "figures.json")
    assert set(report["four options"]["arms"]) >= {"simple_evaluate", "loglikelihood", "ours", "racing"}


def test_all_methods_are_compared(tmp_path: Path) -> None:
    done = run("quality", "--json", tmp_path / "figures.json", "--plots", tmp_path / "plots")
    results = figures(tmp_path / "figures.json")
    assert set(results["members"]) == {"base", "stories", "maths", "code"}
    methods = results["9 layers, seed 0"]
    assert set(methods) >= {"default search", "not repaired", "shortgpt", "best merge", "remove + merge"}
    assert "as good as the best baseline" in done.stdout
    assert (tmp_path / "plots" / "quality-sizes.png").is_file()


def test_merges_at_full_size_are_compared(tmp_path: Path) -> None:
    run("full_size", "--json", tmp_path / "figures.json")
    arms = figures(tmp_path / "figures.json")
    assert {"base", "code", "linear", "dare_ties", "tuned, a weight per layer"} <= set(arms)
    assert all(arm["losses"]["mean"] > 0 for arm in arms.values())
    assert arms["our search, not tuned"]["tokens"] > 0


def test_stock_mergekit_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["architectures", "--tiny", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", command)
    importlib.import_module("architectures").main()
    rows = figures(tmp_path / "figures.json")["architectures"]
    assert rows["llama"]["tailor"] == {"stack": "right", "merge": "right"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A directory with enough text to train on and to make items of."""
    directory = tmp_path / "data" / "text"
    directory.mkdir(parents=True)
    for domain in DOMAINS:
        rng = random.Random(domain)
        words = ["".join(rng.choices("aeioubdgklmnprst", k=rng.randint(2, 8))) for _ in range(500)]
        documents = (" ".join(rng.choices(words, k=500)) for _ in range(80))
        text = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        (directory / f"{domain}.jsonl").write_text(text)
    return directory


def test_a_family_is_trained_and_its_tasks_are_made(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("train_family", texts, out)
    assert set(figures(out / "training.json")) == {"base", "stories", "maths", "code"}
    items = tmp_path / "data" / "items"
    items.mkdir()
    pairs = [{"sentence_good": f"{n} is.", "sentence_bad": f"{n} are.", "pairID": n} for n in range(8)]
    for paradigm in importlib.import_module("make_tasks").PARADIGMS:
        text = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (items / f"blimp_{paradigm}.jsonl").write_text(text)
    run("make_tasks", tmp_path / "data", out / "tasks")
    for domain in DOMAINS:
        assert len((out / "tasks" / "test" / f"{domain}.jsonl").read_text().splitlines()) == 4


def test_every_benchmark_is_run_here() -> None:
    source = Path(__file__).read_text()
    programs = {file.stem for file in BENCHMARKS.glob("*.py")} - set(HELPERS)
    assert {name for name in programs if f'("{name}"' not in source} == set()


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.name)
def test_benchmarks_stand_on_the_public_api(file: Path) -> None:
    imported = {
        node.module
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gptailor_merge")
    }
    assert imported <= {"gptailor_merge", "gptailor_merge.api.engine"}
