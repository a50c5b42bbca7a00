"""Every benchmark runs in its `--tiny` form, and its table or file has what it promises."""

from __future__ import annotations

import ast
import importlib
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HELPERS = (
    *("bounded", "common", "engine_arms", "engine_setup", "gpu_engine", "gpu_parts", "paper_search"),
    *("quality_bench", "quality_methods", "quality_report", "treatment"),
)
"""Modules that are no program."""

DOMAINS = ("stories", "encyclopedia", "maths", "code")


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Benchmarks import each other as they do when they are run."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


OWN_ARMS = ("not tuned", "not repaired")


def run(name: str, *arguments: object, exit_code: int = 0) -> Result:
    """Runs a benchmark in this process."""
    program = typer.Typer()
    program.command()(importlib.import_module(name).main)
    done = CliRunner().invoke(program, ["--tiny", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return done


def figures(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_the_demo_prints_its_table(tmp_path: Path) -> None:
    done = run("demo", "--out", tmp_path / "run")
    ours, rival = "found by gptailor-evolve", "one merge + ShortGPT"
    rows = [line.strip().split("  ")[0] for line in done.stdout.splitlines()]
    assert {"base", "best contiguous block dropped"} <= {*rows}
    for name in (ours, rival):
        begin = rows.index(name)
        assert rows[begin + 1 : begin + 3] == [f"{name}, repaired", f"{name}, repaired, tuned"]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_composing_is_faster_than_writing(tmp_path: Path) -> None:
    run("compose", "--json", tmp_path / "figures.json")
    assert figures(tmp_path / "figures.json")["ratio"] > 1


@pytest.mark.weekly
def test_all_arms_of_the_evaluator_give_the_same_losses(tmp_path: Path) -> None:
    run("evaluator", "--json", tmp_path / "figures.json")
    report = figures(tmp_path / "figures.json")
    assert set(report["arms"]) == {"disk", "rebuild", "plain", "ours", "racing"}
    assert report["largest_relative_difference"] < 1e-6
    assert report["racing"]["same_best"] == report["racing"]["generations"]


@pytest.mark.weekly
def test_more_tokens_of_the_teacher_miss_less(tmp_path: Path) -> None:
    run("kl_top_k", "--json", tmp_path / "figures.json")
    missed = [row["largest_share_missed"] for row in figures(tmp_path / "figures.json").values()]
    assert missed == sorted(missed, reverse=True)
    assert missed[-1] == 0.0


@pytest.mark.weekly
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


@pytest.mark.weekly
def test_edits_repair_a_block_and_leave_parts_out(tmp_path: Path) -> None:
    run("edits", "--json", tmp_path / "figures.json")
    results = figures(tmp_path / "figures.json")
    assert len(results["block"]["losses"]) == 3
    size, left = results["greedy"]["not_zero"]
    assert left <= size


@pytest.mark.weekly
def test_a_front_is_compared_with_random_recipes(tmp_path: Path) -> None:
    run("pareto", "--out", tmp_path / "run", "--json", tmp_path / "figures.json")
    rows = figures(tmp_path / "figures.json")["sizes"]
    assert rows
    assert all(set(row["found"]) == set(row["random"]) for row in rows)


@pytest.mark.weekly
def test_lm_eval_and_ours_give_the_same_accuracies(tmp_path: Path) -> None:
    run("tasks", "--json", tmp_path / "figures.json")  # ends with an error where they differ
    report = figures(tmp_path / "figures.json")
    assert set(report["four options"]["arms"]) >= {"simple_evaluate", "loglikelihood", "ours", "racing"}


@pytest.mark.weekly
def test_all_methods_are_compared(tmp_path: Path) -> None:
    done = run("quality", "--json", tmp_path / "figures.json", "--plots", tmp_path / "plots")
    results = figures(tmp_path / "figures.json")
    assert set(results["members"]) == {"base", "stories", "maths"}
    methods = results["6 layers, seed 0"]
    rivals = {f"one merge + {name}" for name in ("ShortGPT", "SLEB", "EvoPress", "EvoPress (equal seconds)")}
    assert set(methods) == {"default search", *OWN_ARMS, "shortgpt", "remove + merge"} | rivals
    ours, rival = methods["default search"], methods["one merge + ShortGPT"]
    assert "repaired" not in ours  # its best recipe is tuned
    assert {**ours["tuned"], "seconds": 0} == {**ours["held_out"], "tokens": ours["tokens"], "seconds": 0}
    assert methods["not repaired"]["tokens"] < methods["not tuned"]["tokens"] < ours["tokens"]
    assert rival["tokens"] < rival["repaired"]["tokens"] < rival["tuned"]["tokens"]
    assert "as good as the best baseline" in done.stdout
    assert (tmp_path / "plots" / "quality-sizes.png").is_file()


def test_a_family_of_adapters_is_measured_on_texts_beside_it(tmp_path: Path) -> None:
    """What a text is called decides who teaches it, and whether it is calibrated on."""
    family, texts = tmp_path / "family", tmp_path / "texts"
    for name, file in {"code": "adapter_config.json", "maths": "config.json"}.items():
        (family / name).mkdir(parents=True)
        (family / name / file).write_text("{}")
    for kind, names in {"calibration": ("code", "tales"), "held-out": ("code", "tales", "maths")}.items():
        (texts / kind).mkdir(parents=True)
        for name in names:
            (texts / kind / f"{name}.jsonl").write_text("")
    config = importlib.import_module("quality").configuration(
        family,
        base=tmp_path / "base",
        texts=texts,
        without=["tales"],
        outside=[f"sums={tmp_path}/sums.jsonl:question"],
        sizes={"tokens": 96, "held_out_tokens": 128, "sequence_length": 16},
    )
    base = str(tmp_path / "base")
    variants = {"code": f"{base}+{family / 'code'}", "maths": str(family / "maths")}
    assert config["family"] == {"base": base, "variants": variants}
    (objective,), (held_out,) = config["objectives"], config["held_out"]
    assert objective["data"] == {"code": str(texts / "calibration" / "code.jsonl")}
    assert objective["teacher"] == {"code": "code"}
    assert (objective["tokens"], held_out["tokens"]) == (96, 128)
    assert (objective["sequence_length"], held_out["sequence_length"]) == (16, 16)
    assert set(held_out["data"]) == {"code", "tales", "maths", "sums"}
    assert held_out["data"]["sums"] == {"file": str(tmp_path / "sums.jsonl"), "column": "question"}


@pytest.mark.weekly
def test_what_one_gpu_measures_is_tried_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part has a bound; one that reaches it, or fails, leaves what it has to the file."""
    gpu = importlib.import_module("gpu")
    unnamed, named = ([p for p in gpu.PARTS if p.only_if_named is only] for only in (False, True))
    assert all(sum(part.seconds for part in parts) <= 480 for parts in (unnamed, named))

    def endless(subject: Any, note: Any) -> None:
        note({"rounds": {"first": 1}})
        note({"rounds": {"last": 2}})
        while True:
            time.sleep(0.01)

    def failing(subject: Any, note: Any) -> None:
        raise ValueError("no such kernel")

    parts = (gpu.Part("endless", 0.5, endless), *unnamed, gpu.Part("failing", 9, failing))
    monkeypatch.setattr(gpu, "PARTS", parts)
    file = tmp_path / "figures.json"
    done = run("gpu", "--json", file, exit_code=1)
    results = figures(file)
    assert {name: results[name]["ended"] for name in ("endless", "quality", "failing")} == {
        "endless": "bound",
        "quality": "whole",
        "failing": "failed: no such kernel",
    }
    assert results["endless"]["results"] == {"rounds": {"first": 1, "last": 2}}
    quality = results["quality"]["results"]
    assert set(quality["members"]) == {"base", "maths", "stories"}
    for seed in (0, 1):
        job = quality[f"4 layers, seed {seed}"]
        assert set(job) == {"default search", *OWN_ARMS, "one merge + ShortGPT"}
        assert "tuned" in job["default search"]
        assert "tuned" in job["one merge + ShortGPT"]
    assert "4 layers, 2 seeds" in done.stdout


def test_parts_that_measure_the_engine_run_where_they_are_named(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    names = ("engine-7b", "host-bank", "search-135m", "equal")
    run("gpu", "--json", file, *(argument for name in names for argument in ("--part", name)))
    figure_of = figures(file)
    assert [figure_of[name]["ended"] for name in names] == ["whole"] * 4
    generation = figure_of["engine-7b"]["results"]["generation"]
    assert set(generation["arms"]) == {"disk", "rebuild", "plain", "ours", "racing"}
    assert generation["largest_relative_difference"] < 1e-6
    assert 0 < generation["limit"]["flops"] < 1
    assert figure_of["host-bank"]["results"]["losses"] == {"equal": True, "apart": 0.0}
    ways = figure_of["equal"]["results"]
    assert all(ways[name]["equal"] for name in ("again", "one by one", "raced", "streamed"))


def test_an_arm_that_reaches_its_bound_leaves_the_others_their_time() -> None:
    bounded = importlib.import_module("bounded").bounded
    reached: list[bool] = []
    with bounded(0.3) as whole:
        for _ in range(99):
            with bounded(0.05) as arm:
                time.sleep(5)
            reached.append(arm.reached)
        reached.append(False)
    assert whole.reached
    assert all(reached)
    assert 1 <= len(reached) <= 6
    with bounded(60) as ample:
        pass
    assert not ample.reached


def test_memory_is_read_in_the_course_of_a_search(tmp_path: Path) -> None:
    run("memory", "--json", tmp_path / "figures.json")
    report = figures(tmp_path / "figures.json")
    assert [reading["candidates"] for reading in report["readings"]] == [8, 16]
    assert report["ended"] == "whole"


def test_more_workers_are_reckoned(tmp_path: Path) -> None:
    run("scale", "--json", tmp_path / "figures.json")
    reckoned = figures(tmp_path / "figures.json")["simulated"]
    assert set(reckoned) == {"8 workers, 4 candidates", "64 workers, 4 candidates"}
    assert all(arm["speedup"] > 0 and 0 < arm["share_waiting"] < 1 for arm in reckoned.values())


@pytest.mark.weekly
def test_merges_at_full_size_are_compared(tmp_path: Path) -> None:
    run("full_size", "--json", tmp_path / "figures.json")
    arms = figures(tmp_path / "figures.json")
    assert {"base", "code", "linear", "dare_ties", "tuned, a weight per layer"} <= set(arms)
    assert all(arm["losses"]["mean"] > 0 for arm in arms.values())
    assert arms["our search, not tuned"]["tokens"] > 0


@pytest.mark.weekly
def test_ways_to_heal_are_compared(tmp_path: Path) -> None:
    run("heal", "--json", tmp_path / "figures.json")
    results = figures(tmp_path / "figures.json")
    healed = {name: result for name, result in results.items() if "steps" in result}
    assert len(healed) == 5
    assert all(result["steps"] == 1 and result["held_out"]["mean"] > 0 for result in healed.values())
    assert healed["all weights, 256"]["parameters"] != healed["adapter, 256"]["parameters"]


@pytest.mark.weekly
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


@pytest.mark.weekly
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
