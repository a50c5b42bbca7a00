"""The commands as a user types them: output, files, exit codes."""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from gptailor_merge.cli import app as cli
from gptailor_merge.runs.journal import Journal
from tests.conftest import recipe_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; (exit code, stdout, stderr)."""

    def call(*arguments: object, evolve: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gptailor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            (cli.evolve_main if evolve else cli.main)()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def config(family: dict[str, str], texts: dict[str, str], tmp_path: Path) -> Path:
    others = {}
    for name, file in texts.items():
        rows = [json.loads(line)["text"] for line in Path(file).read_text().splitlines()]
        others[name] = str(tmp_path / f"held-out-{name}.jsonl")
        Path(others[name]).write_text("".join(json.dumps({"text": row[::-1]}) + "\n" for row in rows))
    document = {
        "family": {"base": family["base"], "variants": {n: family[n] for n in ("math", "code")}},
        "target": {"remove": 2},
        "repair": {"texts": "scored"},
        "tune": {"steps": 0},
        "writes": {"tokens": 0},
        "objectives": [{"kind": "kl", "data": texts, "tokens": 64, "sequence_length": 16}],
        "held_out": [{"kind": "perplexity", "data": others, "tokens": 64, "sequence_length": 16}],
        "search": {"budget": 12, "population": 4},
    }
    return write(tmp_path / "search.yml", document)


def write(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_document_that_is_searched_on_is_not_held_out(run: Run, config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text())
    searched = Path(document["objectives"][0]["data"]["stories"])
    leaked = json.loads(searched.read_text().splitlines()[0])["text"]
    held_out = Path(document["held_out"][0]["data"]["sums"])
    held_out.write_text(json.dumps({"text": f"  {leaked}\n"}) + "\n" + held_out.read_text())
    code, _, error = run(config, "--out", tmp_path / "run", "--device", "cpu", evolve=True)
    assert code == 2
    assert "held_out[0].data.sums: 1 of " in error
    assert f"documents are also searched on (as stories), found {leaked!r}" in error
    assert not (tmp_path / "run" / "journal.db").exists()


def test_options_of_the_engine_reach_it(run: Run, config: Path, tmp_path: Path) -> None:
    options = ("--device", "cpu", "--no-model", "--no-racing", "--bank", "host")
    code, _, error = run(config, "--out", tmp_path / "run", *options, evolve=True)
    assert (code, error.count("Error")) == (0, 0), error
    assert yaml.safe_load((tmp_path / "run" / "config.yml").read_text())["search"]["racing"] is False
    code, printed, _ = run("show", tmp_path / "run", "--json")
    shown = json.loads(printed)
    assert (shown["dropped"], shown["tokens"]) == (0, 64 * (12 - shown["duplicates"]))
    code, _, message = run(config, "--out", tmp_path / "no", "--bank", "disk", evolve=True)
    assert code == 2
    assert "'disk'" in message


def test_a_dry_run_says_what_the_search_will_take_and_writes_nothing(
    run: Run, config: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    for out in ([], ["--out", tmp_path / "run"]):
        code, printed, error = run(config, *out, "--dry-run", "--budget", 9, "--device", "cpu", evolve=True)
        assert (code, error) == (0, "measuring how fast the base scores\n")
        assert "3 models of 5 layers (0.0M parameters in BF16), of which 3 (0.0M) stay" in printed
        assert re.search(r"search +9 candidates of 64; races end many of them early +576 +\d+ s", printed)
        assert re.search(r"the family's weights +0 MB", printed)
    assert sorted(tmp_path.rglob("*")) == before
    code, _, error = run(config, "--dry-run", "--seed", -1, evolve=True)
    assert (code, "--seed: expected a whole number" in error) == (2, True)


def test_a_drafted_search_is_one_command_away(
    run: Run, family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "new.yml"
    models = [family["base"], family["math"], f"py={family['code']}"]
    teachers = ["--teacher", "stories=py", "--teacher", "sums=math"]
    options = ["--data", *texts.values(), *teachers, "--target", 0.8, "--out", out]
    code, printed, error = run("init", *models, *options, "--device", "cpu")
    assert (code, error) == (0, "")
    assert re.search(r"search +240 candidates of \d+,\d+; races end many", printed)
    assert "warning: nothing is held out: the result will have no score on texts" in printed
    command = f"gptailor-evolve {out} --out runs/new --device cpu"
    assert printed.splitlines()[-2:] == [
        f"{out} is written; look at it (--dry-run tells the time), and search with",
        f"  {command}",
    ]
    document = yaml.safe_load(out.read_text())
    assert document["objectives"][0]["teacher"] == {"stories": "py", "sums": "math"}
    code, _, error = run("init", *models, "--out", out)
    assert (code, error) == (2, f"Error: {out} exists; choose another --out or remove it\n")


def test_what_cannot_be_raced_is_refused_before_anything_is_loaded(
    run: Run, config: Path, tmp_path: Path
) -> None:
    document = yaml.safe_load(config.read_text())
    document["search"] |= {"optimizer": "DE"}
    code, _, message = run(
        write(config, document), "--out", tmp_path / "run", "--racing", "--device", "cpu", evolve=True
    )
    assert code == 2
    assert "search.racing: it is not known what DE keeps of a generation" in message
    assert not (tmp_path / "run").exists()


def test_a_search_leaves_a_run_that_mergekit_and_transformers_read(
    run: Run, config: Path, tmp_path: Path
) -> None:
    document = yaml.safe_load(config.read_text())
    document["search"]["warm_start"] = []  # probes of whole models are scored in part
    write(config, document)
    out = tmp_path / "run"
    code, printed, progress = run(config, "--out", out, "--device", "cpu", evolve=True)
    assert code == 0
    assert {f.name for f in out.iterdir()} == {"config.yml", "journal.db", "best.yml", "model", "report.html"}
    assert f"recipe  {out / 'best.yml'}" in printed
    assert "12/12: best " in progress
    assert "12 candidates of 64; races end many of them early" in progress
    assert "12 candidates of 64" not in printed
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert model.config.num_hidden_layers == 3

    assert re.search(r"calibration set: kl\n.*\n  best +\d", printed, re.DOTALL)
    assert re.search(r"  base \(5 layers, 0.0\dM\) .*\n  best \(3 layers, 0.0\dM\) ", printed, re.DOTALL)
    code, printed, _ = run("show", out, "--json")
    shown = json.loads(printed)
    assert code == 0
    assert shown["recipe"] == str(out / "best.yml")
    assert shown["candidates"] == 12
    assert shown["failures"] == 0
    whole = 64 * (12 - shown["duplicates"])
    assert shown["tokens"] <= whole
    assert (shown["tokens"] == whole) == (shown["dropped"] == 0)
    assert set(shown["scores"]["kl"]) == {"stories", "sums", "total"}
    assert set(shown["held_out"]) == {"base", "math", "code", "found"}
    assert shown["sizes"]["found"]["layers"] == 3

    code, printed, _ = run("recipe", "lint", out / "best.yml")
    assert (code, printed.strip()) == (0, f"{out / 'best.yml'}: sound; 3 layers, digest {shown['digest']}")
    code, _, error = run(config, "--out", out, evolve=True)
    already = f"Error: {out} already holds a run; continue it with --resume or choose another --out\n"
    assert (code, error) == (2, already)  # before anything is measured
    code, _, error = run(config, "--out", out, "--seed", 5, "--resume", evolve=True)
    assert (code, "was begun with another config; seed differ" in error) == (2, True)
    code, _, _ = run(config, "--out", out, "--resume", "--budget", 14, evolve=True)
    assert code == 0
    assert json.loads(run("show", out, "--json")[1])["candidates"] == 14


def test_the_same_seed_finds_the_same_recipe(run: Run, config: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(config, "--out", tmp_path / name, "--seed", seed, "--no-model", evolve=True)[0] == 0
        assert not (tmp_path / name / "model").exists()
    assert (tmp_path / "a" / "best.yml").read_text() == (tmp_path / "b" / "best.yml").read_text()
    proposed = {}
    for name in "abc":
        with Journal(tmp_path / name / "journal.db") as journal:
            proposed[name] = [candidate.digest for candidate in journal.candidates()]
    assert proposed["a"] == proposed["b"] != proposed["c"]


def test_merge_then_score(run: Run, family: dict[str, str], texts: dict[str, str], tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.yml", recipe_of(family, dtype="float32", out_dtype="bfloat16"))
    code, printed, _ = run("merge", recipe, tmp_path / "out")
    assert (code, printed.strip()) == (0, f"{tmp_path / 'out'}: 4 layers, reloaded, every tensor in place")
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == recipe.read_text()
    assert (tmp_path / "out" / "tokenizer.json").is_file()

    options = ["--data", *texts.values(), "--tokens", "64", "--reference", family["base"], "--json"]
    code, printed, _ = run("score", recipe, *options)
    of_recipe = json.loads(printed)
    assert code == 0
    assert of_recipe == json.loads(run("score", tmp_path / "out", *options)[1])
    assert set(of_recipe) == {"files", "total"}
    assert set(of_recipe["files"]) == {"stories", "sums"}
    for row in (*of_recipe["files"].values(), of_recipe["total"]):
        assert set(row) == {"nll", "perplexity", "kl", "tokens"}
    assert of_recipe["total"]["tokens"] == 62
    of_base = json.loads(run("score", family["base"], *options)[1])
    assert of_base["total"]["kl"] == 0.0
    without = json.loads(run("score", recipe, "--data", f"x={texts['sums']}", "--json")[1])
    assert set(without["files"]["x"]) == {"nll", "perplexity", "tokens"}


def test_check(run: Run, family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed, _ = run("check", family["base"])
    assert (code, printed.splitlines()[-1]) == (0, f"{family['base']}: sound")
    assert "5 layers of 1,952 parameters, 2,048 in embeddings and head, 11,824 in all" in printed
    code, printed, _ = run("check", family["base"], "--json")
    report = json.loads(printed)
    assert (code, report["sound"], report["totals"]["layers"]) == (0, True, 5)
    assert set(report["findings"][0]) == {"name", "verdict", "sentence"}

    broken = Path(shutil.copytree(family["base"], tmp_path / "broken"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "eos_token_id": 64}))
    code, printed, _ = run("check", broken)
    assert (code, printed.splitlines()[-1]) == (1, f"{broken}: not sound")
    assert re.search(r"special tokens +fail +config.json: eos_token_id is 64; expected 0 to 63", printed)
    code, printed, _ = run("check", broken, "--json")
    assert (code, json.loads(printed)["sound"]) == (1, False)

    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    code, printed, error = run("check", family["base"], "--gguf")
    assert (code, printed, error.startswith(f"Error: LLAMA_CPP is {tmp_path}; expected")) == (2, "", True)


def test_the_table_is_for_people(run: Run, family: dict[str, str], texts: dict[str, str]) -> None:
    code, printed, _ = run("score", family["base"], "--data", texts["sums"])
    assert code == 0
    assert "perplexity" in printed
    assert "total" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_modle": "x"}, "base_modle: unknown key; did you mean 'base_model'?"),
        ({"dtype": "fp8"}, "dtype: unknown dtype, found 'fp8'"),
        ({"slices": []}, "slices: the model would be empty"),
        ({"parameters": {"head": "nobody"}}, "parameters.head: unknown member, found 'nobody'"),
    ],
)
@pytest.mark.parametrize("command", ["lint", "merge", "score"])
def test_bad_recipes_exit_with_2_and_write_nothing(
    run: Run,
    family: dict[str, str],
    texts: dict[str, str],
    tmp_path: Path,
    command: str,
    change: dict[str, Any],
    message: str,
) -> None:
    recipe = write(tmp_path / "recipe.yml", {**recipe_of(family), **change})
    arguments = {
        "lint": ["recipe", "lint", recipe],
        "merge": ["merge", recipe, tmp_path / "out"],
        "score": ["score", recipe, "--data", texts["sums"]],
    }[command]
    code, printed, error = run(*arguments)
    assert (code, printed) == (2, "")
    assert error.startswith(f"Error: {recipe}:")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_bad_arguments_exit_with_2(run: Run, config: Path, family: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    cases: list[tuple[list[Any], bool, str]] = [
        ([tmp_path / "none.yml", "--out", out], True, "none.yml: no such file"),
        ([config, "--out", out, "--device", "tpu"], True, "unknown device, found 'tpu'"),
        ([config], True, "Missing option '--out'"),
        (["show", tmp_path], False, "no such journal; expected a run directory"),
        (["score", family["base"], "--data", tmp_path / "none.txt"], False, "none.txt: no such file"),
        (["score", tmp_path / "none", "--data", "x.txt"], False, "none: no such file"),
        (["recipe", "lint", config], False, "this is a search config"),
        (["check", tmp_path], False, "no config.json; expected a transformers model directory"),
        ([config, "--out", config], True, "cannot be made a directory: File exists"),
    ]
    for arguments, evolve, message in cases:
        code, _, error = run(*arguments, evolve=evolve)
        assert (code, message in error) == (2, True), (arguments, error)
    assert not out.exists()


@pytest.mark.parametrize(
    "seed",
    [-5, 2**32],
)
@pytest.mark.parametrize("command", ["evolve", "baseline"])
def test_seeds_out_of_range_are_refused(
    run: Run, config: Path, tmp_path: Path, command: str, seed: int
) -> None:
    arguments = [
        *(["baseline", "random"] if command == "baseline" else []),
        config,
        "--out",
        tmp_path / "run",
    ]
    code, _, error = run(*arguments, "--seed", seed, evolve=command == "evolve")
    message = f"Error: --seed: expected a whole number from 0 to 4294967295, found {seed}\n"
    assert (code, error) == (2, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evolve", "baseline"])
def test_ctrl_c_says_how_to_go_on(
    run: Run, config: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gptailor_merge.api.searches.execute", interrupt)
    out = tmp_path / "my run"
    arguments = [*(["baseline", "random"] if command == "baseline" else []), config, "--out", out]
    for options in ([], ["--resume"]):
        code, printed, error = run(*arguments, *options, evolve=command == "evolve")
        assert (code, printed) == (130, "")
        assert f"Stopped. {out} keeps what was scored; go on with" in " ".join(error.split())
        command_line = shlex.join(["gptailor", *map(str, arguments), "--resume"])
        assert error.splitlines()[-1] == f"  {command_line}"


def test_other_errors_of_the_system_are_sentences(
    run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    monkeypatch.setattr("gptailor_merge.api.searches.execute", fail)
    code, _, error = run(config, "--out", tmp_path / "run", evolve=True)
    assert (code, error.splitlines()[-1]) == (1, "Error: /tmp/x: No space left on device")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": {"layers": 6}}, "target: expected 1 to 5 layers to keep of 5, found 6"),
        ({"operations": {"merge": ["slrep"]}}, "operations.merge[0]: unknown method, found 'slrep'"),
        ({"search": {"optimizer": "Nobody"}}, "search.optimizer: unknown optimizer, found 'Nobody'"),
        ({"search": {"optimizer": "NoBidding", "budgte": 1}}, "search.budgte: unknown key"),
    ],
)
def test_impossible_searches_exit_with_2(
    run: Run, config: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write(config, {**yaml.safe_load(config.read_text()), **change})
    code, _, error = run(config, "--out", tmp_path / "run", evolve=True)
    assert (code, message in error) == (2, True), error
    assert error.splitlines()[-1].removeprefix("Error: ").startswith(str(config))


def test_a_failed_merge_exits_with_1_and_leaves_nothing(
    run: Run, family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("gptailor_merge.host.materialize.run_merge", fail)
    recipe = write(tmp_path / "recipe.yml", recipe_of(family))
    code, _, error = run("merge", recipe, tmp_path / "out")
    assert (code, error.strip()) == (1, "Error: mergekit could not merge: RuntimeError: disk full")
    assert {f.name for f in tmp_path.iterdir()} == {"recipe.yml"}


def test_an_existing_directory_is_not_overwritten(run: Run, family: dict[str, str], tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.yml", recipe_of(family))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    code, _, error = run("merge", recipe, tmp_path / "out")
    assert (code, "exists and is not an empty directory" in error) == (2, True)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_version_and_the_help_take_no_libraries() -> None:
    code = (
        "import sys; sys.argv = ['gptailor', '--version']\n"
        "from gptailor_merge.cli.app import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.1.0", "0", "False"]


def start_of(family: dict[str, str], **weights: float) -> dict[str, Any]:
    """Three of five layers, one of them merged."""
    document: dict[str, Any] = recipe_of(family)
    document["slices"][2] = {
        "sources": [{"model": family["code"], "layer_range": [2, 3]}],
        "parameters": {"op": "remove"},
    }
    sources = [
        {"model": family[name], "layer_range": [3, 4], "parameters": {"weight": weight}}
        for name, weight in weights.items()
    ]
    merge = {"sources": sources, "parameters": {"op": "merge", "method": "task_arithmetic"}}
    document["slices"].insert(3, merge)
    return document


def test_a_search_starts_from_given_recipes_and_resumes_with_them(
    run: Run, config: Path, family: dict[str, str], tmp_path: Path
) -> None:
    document = start_of(family, math=0.638, code=0.25)
    document["parameters"] = {"head": family["math"]}  # not searched
    start = write(tmp_path / "start.yml", document)
    document = yaml.safe_load(config.read_text())
    document["operations"] = {"merge": ["task_arithmetic"], "protect": {"first": 0, "last": 0}}
    write(config, document)
    options = ("--device", "cpu", "--no-model", "--start", start)
    code, _, error = run(config, "--out", tmp_path / "run", *options, evolve=True)
    assert (code, error.count("Error")) == (0, 0), error
    with Journal(tmp_path / "run" / "journal.db") as journal:
        candidates = [c for c in journal.candidates() if c.status != "probe"]
        before = [c.digest for c in journal.candidates()]
    first = candidates[0].parsed
    merged = next(part for part in first.slices if part.parameter("op") == "merge")
    weights = {s.model: dict(s.parameters)["weight"] for s in merged.sources if s.parameters}
    assert weights == {family["math"]: 0.64, family["code"]: 0.25}
    assert first.parameters.head.weights == (("base", 1.0),)
    start.unlink()  # the run holds all that it depends on
    document["search"]["start"] = yaml.safe_load((tmp_path / "run" / "config.yml").read_text())["search"][
        "start"
    ]
    write(config, document)
    again = ("--device", "cpu", "--no-model", "--resume", "--budget", 14)
    code, _, error = run(config, "--out", tmp_path / "run", *again, evolve=True)
    assert (code, error.count("Error")) == (0, 0)
    with Journal(tmp_path / "run" / "journal.db") as journal:
        assert [c.digest for c in journal.candidates()][: len(before)] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "slerp"}, "merge_method: expected tailor, found 'slerp'; gptailor recipe import"),
        ({"parameters": {"density": 0.5}}, "methods or parameters that this space does not have"),
        ({"slices": []}, "start.yml"),
    ],
)
def test_recipes_that_cannot_be_started_from_are_named(
    run: Run, config: Path, family: dict[str, str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    start = write(tmp_path / "start.yml", {**start_of(family, math=0.6, code=0.2), **change})
    code, _, error = run(config, "--out", tmp_path / "run", "--start", start, evolve=True)
    assert code == 2
    assert message in error
    assert "start.yml" in error
    assert not (tmp_path / "run").exists()


def test_a_foreign_configuration_becomes_a_recipe_and_goes_back_to_plain(
    run: Run, family: dict[str, str], tmp_path: Path
) -> None:
    foreign = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": family["math"], "layer_range": [0, 2]}]},
            {"sources": [{"model": family["base"], "layer_range": [4, 5]}]},
        ],
    }
    file = write(tmp_path / "foreign.yml", foreign)
    recipe = tmp_path / "recipe.yml"
    code, printed, _ = run("recipe", "import", file, "--out", recipe)
    assert code == 0
    assert f"note: base_model is missing; {family['math']} gives config and tokenizer" in printed
    assert f"{recipe}: 3 layers" in printed
    assert run("recipe", "lint", recipe)[0] == 0
    code, _, error = run("recipe", "import", file, "--out", recipe)
    assert (code, "exists; choose another name" in error) == (2, True)
    assert run("recipe", "export", recipe, "--out", tmp_path / "plain")[0] == 2
    code, printed, _ = run("recipe", "export", recipe, "--plain", "--out", tmp_path / "plain")
    assert (code, "mergekit-yaml recipe.yml MODEL" in printed) == (0, True)
    assert {f.name for f in (tmp_path / "plain").iterdir()} == {"recipe.yml"}


def test_recipes_are_drawn_and_compared(run: Run, tmp_path: Path) -> None:
    names = {"base": "org/base", "math": "org/math", "code": "org/code"}
    one = write(tmp_path / "one.yml", recipe_of(names))
    other = write(tmp_path / "other.yml", recipe_of(names, out_dtype="bfloat16"))
    code, printed, _ = run("recipe", "show", one)
    assert code == 0
    assert "removed" in printed
    assert "task_arithmetic" in printed
    assert run("recipe", "diff", one, one)[1].startswith("the same model, digest ")
    code, printed, _ = run("recipe", "diff", one, other)
    assert code == 0
    assert "out_dtype: not given -> bfloat16" in printed
    broken = write(tmp_path / "broken.yml", {**recipe_of(names), "dtype": "fp8"})
    code, _, error = run("recipe", "show", broken)
    assert code == 2
    assert f"{broken}:" in error


def test_a_baseline_leaves_a_run_as_a_search_does(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--out", out, "--device", "cpu")
    code, printed, progress = run("baseline", "sleb", config, *options, "--member", "math")
    assert code == 0, progress
    assert {f.name for f in out.iterdir()} == {"config.yml", "journal.db", "best.yml"}
    assert "baseline  sleb of math" in printed
    assert f"recipe  {out / 'best.yml'}" in printed
    shown = json.loads(run("show", out, "--json")[1])
    assert (shown["baseline"], shown["candidates"], shown["tokens"]) == ("sleb of math", 3 + 2, 5 * 64)
    assert set(shown["held_out"]) == {"base", "math", "code", "found"}
    assert shown["sizes"]["found"]["layers"] == 3
    assert run("recipe", "lint", out / "best.yml")[0] == 0

    code, _, error = run("baseline", "sleb", config, *options)
    assert (code, "already holds a run; continue it with --resume" in error) == (2, True)
    code, _, error = run("baseline", "shortgpt", config, *options, "--resume")
    assert (code, "was begun by sleb of math, not by shortgpt" in error) == (2, True)
    code, _, error = run(config, *options, "--resume", evolve=True)
    assert (code, "was begun by sleb of math, not by a search" in error) == (2, True)
    code, _, _ = run("baseline", "sleb", config, *options, "--member", "math", "--resume")
    assert code == 0
    assert json.loads(run("show", out, "--json")[1]) == shown
    code, _, error = run("baseline", "slab", config, "--out", tmp_path / "other")
    assert (code, "unknown baseline, found 'slab'; did you mean 'sleb'?" in error) == (2, True)
    assert not (tmp_path / "other").exists()


def test_texts_are_found_at_home_and_in_any_column(
    run: Run, family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shells replace `~` at the beginning of an argument only."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, key in (("a", "text"), ("b", "content")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({key: "ONCE UPON A TIME"}) + "\n")
    plain = run("score", family["base"], "--data", "x=~/a.jsonl", "--tokens", "9", "--json")
    named = run("score", family["base"], "--data=x=~/b.jsonl", "--column", "content", "--tokens=9", "--json")
    assert plain == named
    assert plain[0] == 0
    code, _, error = run("score", family["base"], "--data", "~/b.jsonl")
    assert code == 2
    assert "b.jsonl:1: found the keys content; expected text, messages" in error
    assert "{file: b.jsonl, column: content}, or --column content" in error
