"""Stock mergekit and `tailor` make depth-pruned models, architecture by architecture.

Tiny random families (tests/zoo.py) lose layers 1 and 4 of 8, once by a plain stack of layers, once with
every layer merged of two members. Stock mergekit runs in a process that knows nothing of this package.
What comes out is loaded back as its users load it, and its logits are compared with those of the model
composed in memory from the imported configuration, which the tests prove equal to what is written. With
--tiny two architectures are tried.

    python benchmarks/architectures.py [--json FILE] [--page docs/architectures.md] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- architectures:begin -->", "<!-- architectures:end -->"
KEPT = ((0, 1), (2, 4), (5, 8))
KINDS = ("stack", "merge")


def plain(family: dict[str, str], kind: str) -> dict[str, Any]:
    """Returns the configuration as somebody writes it for stock mergekit."""
    members = [family["base"]] if kind == "stack" else [family["base"], family["math"]]
    slices = [{"sources": [{"model": m, "layer_range": list(part)} for m in members]} for part in KEPT]
    document = {"base_model": family["base"], "dtype": "float32", "slices": slices}
    if kind == "stack":
        return {"merge_method": "passthrough", **document}
    return {"merge_method": "linear", "parameters": {"weight": 0.5}, **document}


def run_stock(root: Path) -> None:
    """Runs each configuration below root, in its own process, and writes mergekit's message beside it."""
    import torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(1)
    for file in sorted(root.glob("*/*.json")):
        message = ""
        try:
            configuration = MergeConfiguration.model_validate(json.loads(file.read_text()))
            run_merge(
                configuration, str(file.with_suffix("")), MergeOptions(quiet=True, write_model_card=False)
            )
        except Exception as error:  # whatever mergekit raises is the result
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        file.with_suffix(".said").write_text(message)
    assert not any(name.startswith("gptailor_merge") for name in sys.modules)


def judge(directory: Path, message: str, reference: Any) -> str:
    """Says in a few words what became of a model."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    if message:
        when = "after writing the weights" if list(directory.glob("*.safetensors")) else "before writing"
        return f"crashes {when}: {shortened(message)}"
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        return f"written, does not load: {shortened(str(error))}"
    random = len(report["missing_keys"]) + len(report["mismatched_keys"])
    if random:
        return f"loads with {random} random tensors"
    if report["unexpected_keys"]:
        return f"loads without {len(report['unexpected_keys'])} of its tensors"
    return "right" if same_logits(model, reference) else "loads, computes something else"


def same_logits(model: Any, reference: Any) -> bool:
    """Tells whether logits are bit-equal, past the zoo's sliding windows, and generation needs no cache."""
    import torch

    ids = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 35, 8, 9], [2, 7, 18, 28, 1, 8, 2, 8, 45, 9]])
    with torch.inference_mode():
        if not torch.equal(model.eval()(ids).logits, reference(ids).logits):
            return False
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    generated = [model.generate(ids, use_cache=cached, **options) for cached in (True, False)]
    return torch.equal(*generated)


def shortened(text: str) -> str:
    """Returns the part of a message that tells, without paths."""
    for known, short in (
        ("must be equal to the number of `layer_types`", "`layer_types` has the wrong length"),
        ("required but not present in model", ""),
    ):
        if known in text:
            return short or f"asks for `{text.split('Tensor ')[1].split(' ')[0]}`"
    return text.split(": ", 1)[-1][:80]


def examine(root: Path, name: str) -> dict[str, Any]:
    """Returns the row of one architecture."""
    from gptailor_merge import TailorError, compose, export_recipe, import_recipe, materialize

    row: dict[str, Any] = {"stock": {}, "tailor": {}, "plain": {}}
    for kind in KINDS:
        stem = root / name / kind
        recipe = import_recipe(stem.with_suffix(".json")).recipe
        reference = compose(recipe, device="cpu")
        row["stock"][kind] = judge(stem, stem.with_suffix(".said").read_text(), reference)
        out = root / name / f"{kind}-tailor"
        materialize(recipe, out)
        row["tailor"][kind] = judge(out, "", reference)
        directory = root / name / f"{kind}-plain"
        try:
            export_recipe(recipe, directory)
            row["plain"][kind] = "with a skeleton" if list(directory.glob("skeleton*")) else "yes"
        except TailorError as error:
            row["plain"][kind] = "no: " + str(error).removeprefix(
                "there is no plain mergekit configuration: "
            )
    return row


def refused(root: Path) -> dict[str, str]:
    """Returns the messages that models are refused with."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    from gptailor_merge import InputError, import_recipe, lint
    from tests.zoo import config_of

    def write(name: str, config: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        return plain({"base": str(root / name)}, "stack")

    def quantised() -> dict[str, Any]:
        document = write("quantised", config_of("gpt_oss"))
        file = root / "quantised" / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
        return document

    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "ernie4_5_moe, jamba, … where removals shift the pattern": lambda: write(
            "ernie", config_of("ernie4_5_moe")
        ),
        "minimax": lambda: write("minimax", config_of("minimax")),
        "gemma4 (text) with embeddings per layer": lambda: write("gemma4", config_of("gemma4")),
        "gpt2 and others without a list `layers`": lambda: write(
            "gpt2", transformers.GPT2Config(n_layer=8, n_embd=16, n_head=4, vocab_size=64)
        ),
        "quantised checkpoints": quantised,
    }
    messages = {}
    for name, case in cases.items():
        try:
            (root / "refused.json").write_text(json.dumps(case()))
            lint(import_recipe(root / "refused.json").recipe)
        except InputError as error:
            messages[name] = str(error).removeprefix(f"{root}/refused.json: ").replace(f"{root}/", "")
        else:
            raise SystemExit(f"{name} was to be refused, and was not")
    return messages


def table(rows: dict[str, dict[str, Any]], refusals: dict[str, str]) -> str:
    """Returns the table of the page on architectures."""

    def cell(results: dict[str, str]) -> str:
        stack, merge = (results[kind] for kind in KINDS)
        return stack if stack == merge else f"{stack}; merging: {merge}"

    lines = [
        "| architecture | stock mergekit 0.1.5 | with `tailor` | `export --plain` |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {n} | {cell(r['stock'])} | {cell(r['tailor'])} | {cell(r['plain'])} |" for n, r in rows.items()
    ]
    lines += ["", "| refused | because |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in refusals.items()]
    return "\n".join(lines)


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--tiny", action="store_true", help="try two architectures")
    parser.add_argument("--page", type=Path, help="replace the table in this file")
    parser.add_argument("--stock", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stock:
        run_stock(arguments.stock)
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch
    from transformers.utils import logging

    from tests.zoo import ZOO, write_family

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = ("llama", "gpt_neox") if arguments.tiny else tuple(ZOO)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in names:
            family = write_family(root / name, name, torch.float32)
            for kind in KINDS:
                (root / name / f"{kind}.json").write_text(json.dumps(plain(family, kind)))
        command = [sys.executable, __file__, "--stock", str(root)]
        environment = {**os.environ, "PYDANTIC_DISABLE_PLUGINS": "gptailor"}
        subprocess.run(
            command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        rows = {name: examine(root, name) for name in names}
        refusals = refused(root / "refused")
    text = table(rows, refusals)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps({"architectures": rows, "refused": refusals}, indent=1))
    if arguments.page:
        before, rest = arguments.page.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
        arguments.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
