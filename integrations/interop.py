"""Runs tailored models in llama.cpp and compares loss and greedy text with transformers.

    make interop
    LLAMA_CPP=path/to/llama.cpp python integrations/interop.py [--model NAME=DIR] [--json FILE]

It needs llama-cpp-python, whose source distribution carries llama.cpp and its converter. Tiny random
families lose layers by a recipe, are written by mergekit, converted by llama.cpp's own converter in float32,
and run by both libraries on the same tokens; `gptailor check` looks at each model before. A family with
sliding windows is cut once in whole periods of its pattern and once not, and then once more with the pattern
in the GGUF.

A row is as it should be where both agree and the check is silent, or where they differ and the check has said
why; the command fails where one is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import gptailor_merge
from gptailor_merge import Recipe, quiet_libraries

DEMO = Path(__file__).resolve().parents[1] / "recipes" / "demo"
TEXT = DEMO / "held-out" / "stories.jsonl"
SCORED, WRITTEN = 192, 40
"""Tokens that are scored, and tokens that are written after the first quarter of them."""

EXACT, ROUNDED = 2e-3, 3e-2
"""How far losses may be apart, in nats per token: in float32, and in bfloat16, to which llama.cpp rounds
activations, too."""

SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
WINDOW = 32

CONVERT = """
import runpy, sys
from pathlib import Path
script = Path(sys.argv[1])
sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
from conversion.base import TextModel
known = TextModel.get_vocab_base_pre
def named(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"
TextModel.get_vocab_base_pre = named
from_sentencepiece = TextModel._set_vocab_sentencepiece
def vocabulary(self, *arguments, **options):
    try:
        from_sentencepiece(self, *arguments, **options)
    except FileNotFoundError:
        self._set_vocab_gpt2()
TextModel._set_vocab_sentencepiece = vocabulary
sys.argv = [str(script), *sys.argv[2:]]
runpy.run_path(str(script), run_name="__main__")
"""
"""llama.cpp's converter with the built-in family's tokenizer. It knows tokenizers by a hash of what they do,
and this one, which splits as GPT-2's, is not in its list; of Gemma 2 it expects one of sentencepiece."""

VLLM = """
import json, os, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
from vllm import LLM, SamplingParams
def run(directory, ids, begun, count):
    model = LLM(directory, dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=1, seed=0)
    def ask(tokens, **options):
        return model.generate([{"prompt_token_ids": tokens}], SamplingParams(temperature=0, **options))[0]
    scored = ask(ids, max_tokens=1, prompt_logprobs=0).prompt_logprobs[1:]
    loss = -sum(by_token[token].logprob for by_token, token in zip(scored, ids[1:])) / len(scored)
    return loss, list(ask(ids[:begun], max_tokens=count, min_tokens=count).outputs[0].token_ids)
results = []
for job in json.load(sys.stdin):
    try:
        results.append(run(*job))
    except Exception as error:
        results.append((None, f"{type(error).__name__}: {error}".splitlines()[0]))
    print(results[-1], file=sys.stderr, flush=True)
json.dump(results, open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Case:
    """A family and what is done to its depth.

    Attributes:
        kind: transformers' model type.
        removed: layers that go.
        settings: of the config, beside SHAPE.
        pattern: whether the list of sliding layers is written into the GGUF.
    """

    kind: str
    change: str
    depth: int
    removed: Collection[int]
    settings: Mapping[str, Any]
    pattern: bool = False


_SLIDING = {"sliding_window": WINDOW}
CASES = (
    Case("llama", "8 to 5 layers", 8, (2, 3, 5), {}),
    Case("llama", "8 to 5 layers, tied", 8, (2, 3, 5), {"tie_word_embeddings": True}),
    Case("qwen3", "8 to 5 layers", 8, (2, 3, 5), {}),
    Case(
        "qwen3",
        "8 to 5, windows in the last 4",
        8,
        (2, 3, 5),
        {"use_sliding_window": True, "max_window_layers": 4, **_SLIDING},
    ),
    Case("mistral", "8 to 5, windows", 8, (2, 3, 5), _SLIDING),
    Case("gemma2", "8 to 6, a whole period", 8, (2, 3), {**_SLIDING, "query_pre_attn_scalar": 32}),
    Case("gemma2", "8 to 5, no whole period", 8, (2, 3, 5), {**_SLIDING, "query_pre_attn_scalar": 32}),
    Case(
        "gemma3_text", "12 to 6, a whole period", 12, range(3, 9), {**_SLIDING, "query_pre_attn_scalar": 32}
    ),
    Case(
        "gemma3_text", "12 to 8, no whole period", 12, range(3, 7), {**_SLIDING, "query_pre_attn_scalar": 32}
    ),
    Case(
        "gemma3_text",
        "12 to 8, pattern in the GGUF",
        12,
        range(3, 7),
        {**_SLIDING, "query_pre_attn_scalar": 32},
        pattern=True,
    ),
    Case("olmo3", "8 to 5, no whole period", 8, (2, 3, 5), _SLIDING),
    Case("cohere2", "8 to 4, a whole period", 8, range(2, 6), {**_SLIDING, "rotary_pct": 1.0}),
    Case("smollm3", "8 to 4, a whole period", 8, range(2, 6), {}),
    Case("smollm3", "8 to 5, no whole period", 8, (2, 3, 5), {}),
)


@dataclass(frozen=True)
class Compared:
    """A model in both libraries.

    Attributes:
        weights: the type that the GGUF has them in.
        transformers, llama_cpp: nats per token; None where the model does not load.
        same_text: whether both write the same tokens.
        same_tokens: whether both split the text alike.
        told: what `gptailor check` says of llama.cpp; empty where it has nothing to say.
        cause: why llama.cpp does not take the model.
        vllm: nats per token in vLLM, or why it does not take the model; None where it was not asked.
        same_in_vllm: whether it writes the same tokens as transformers.
    """

    model: str
    change: str
    weights: str
    transformers: float
    llama_cpp: float | None
    same_text: bool
    same_tokens: bool
    told: str
    cause: str = ""
    vllm: float | str | None = None
    same_in_vllm: bool = False

    @property
    def agrees(self) -> bool:
        """Tells whether both come to the same loss and text."""
        bound = EXACT if self.weights == "f32" else ROUNDED
        near = self.llama_cpp is not None and abs(self.transformers - self.llama_cpp) <= bound
        return near and (self.same_text or self.weights != "f32")

    @property
    def expected(self) -> bool:
        """Tells whether the check has foretold what came."""
        return self.agrees != bool(self.told)


def family(case: Case, root: Path) -> list[str]:
    """Writes a random base and a variant near it, and returns their directories."""
    torch.manual_seed(0)
    settings = {**SHAPE, "num_hidden_layers": case.depth, **case.settings}
    config = AutoConfig.for_model(case.kind, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for module in model.modules():  # norms of random models all have the gain 1, which hides mistakes
        if type(module).__name__.endswith("RMSNorm"):
            nn.init.normal_(module.weight, 0.0 if case.kind.startswith("gemma") else 1.0, 0.2)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "family" / "base")
    directories = []
    for name in ("base", "variant"):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        directories.append(str(root / name))
        for parameter in model.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    return directories


def recipe(case: Case, members: list[str]) -> Recipe:
    """Returns a recipe that removes layers, merges the first and takes the last from the variant."""
    base, variant = members

    def part(layer: int) -> dict[str, Any]:
        model = variant if layer == case.depth - 1 else base
        sources = [{"model": model, "layer_range": [layer, layer + 1]}]
        if layer in case.removed:
            return {"sources": sources, "parameters": {"op": "remove"}}
        if layer:
            return {"sources": sources, "parameters": {"op": "select"}}
        sources = [{**source, "model": member} for member in members for source in sources]
        sources[1]["parameters"] = {"weight": 0.5}
        return {"sources": sources, "parameters": {"op": "merge", "method": "task_arithmetic"}}

    document = {"merge_method": "tailor", "base_model": base, "dtype": "float32"}
    return Recipe.from_mapping({**document, "slices": [part(layer) for layer in range(case.depth)]})


def convert(model: Path, out: Path, outtype: str) -> str:
    """Converts a model, and returns the last line of the converter's complaint, or nothing."""
    script = Path(os.environ["LLAMA_CPP"]) / "convert_hf_to_gguf.py"
    command = [sys.executable, "-c", CONVERT, str(script), str(model), "--outfile", str(out)]
    done = subprocess.run([*command, "--outtype", outtype], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip() or "nothing was said").splitlines()[-1]


def with_pattern(file: Path, pattern: list[bool]) -> Path:
    """Copies a GGUF file, adds the list of its sliding layers, and returns the copy."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.scripts.gguf_new_metadata import copy_with_new_metadata

    copied, reader = file.with_suffix(".pattern.gguf"), GGUFReader(file)
    writer = GGUFWriter(copied, arch=str(reader.fields["general.architecture"].contents()))
    writer.add_sliding_window_pattern(pattern)
    copy_with_new_metadata(reader, writer, {}, [])
    return copied


def in_transformers(directory: Path, text: str) -> tuple[float, list[int], list[int]]:
    """Returns a model's loss on a text, the tokens of the text, and those written after its first quarter."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(text)["input_ids"][:SCORED]
    begun = torch.tensor([ids[: SCORED // 4]])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
        options = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False}
        written = model.generate(begun, attention_mask=torch.ones_like(begun), **options)
    loss = nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
    return loss, ids, written[0, begun.shape[1] :].tolist()


def in_llama_cpp(file: Path, text: str, ids: list[int]) -> tuple[float, list[int], bool]:
    """Returns the same of a GGUF file, and whether it splits the text into the same tokens."""
    from llama_cpp import GGML_TYPE_F32, Llama

    cache = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
    model = Llama(
        str(file),
        n_ctx=512,
        n_batch=512,
        logits_all=True,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        **cache,
    )
    split = model.tokenize(text.encode(), add_bos=ids[0] == model.token_bos(), special=False)
    model.eval(ids)
    logits = torch.tensor(model.scores[: len(ids) - 1])
    loss = nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
    model.reset()
    model.eval(ids[: SCORED // 4])
    written: list[int] = []
    while len(written) < WRITTEN:
        # transformers' min_new_tokens keeps it from ending; so does this.
        scores = torch.tensor(model.scores[model.n_tokens - 1])
        scores[model.token_eos()] = -torch.inf
        written.append(int(scores.argmax()))
        model.eval(written[-1:])
    model.close()
    return loss, written, split[: len(ids)] == ids


def warning(directory: Path) -> str:
    """Returns what `gptailor check` warns of before anybody converts the model; empty where it is content."""
    (finding,) = (each for each in gptailor_merge.check(directory).findings if each.name == "llama.cpp")
    return "" if finding.verdict == "ok" else finding.sentence


Job = tuple[str, list[int], list[int]]
"""A model directory, the tokens of the text, and what transformers writes after the first quarter of them."""


def compare(
    name: str, change: str, directory: Path, text: str, outtype: str, *, pattern: bool = False
) -> tuple[Compared, Job]:
    """Converts a model directory, and runs it in both libraries."""
    config = AutoConfig.from_pretrained(directory).get_text_config()
    told = "" if pattern else warning(directory)
    loss, ids, written = in_transformers(directory, text)
    row = Compared(name, change, outtype, loss, None, same_text=False, same_tokens=False, told=told)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        if cause := convert(directory, file, outtype):
            return replace(row, cause=cause), (str(directory), ids, written)
        if pattern:
            file = with_pattern(file, [kind == "sliding_attention" for kind in config.layer_types])
        other, also_written, same_tokens = in_llama_cpp(file, text, ids)
    same_text = also_written == written
    row = replace(row, llama_cpp=other, same_text=same_text, same_tokens=same_tokens)
    return row, (str(directory), ids, written)


def tiny(text: str, only: str, root: Path) -> Iterator[tuple[Compared, Job]]:
    """Yields the rows of the tiny families, whose models are in directories of their own."""
    for number, case in enumerate(CASES):
        if only in case.kind:
            model = root / str(number) / "model"
            gptailor_merge.materialize(recipe(case, family(case, model.parent)), model)
            yield compare(case.kind, case.change, model, text, "f32", pattern=case.pattern)


def with_vllm(rows: list[Compared], jobs: list[Job], python: str) -> list[Compared]:
    """Returns the rows with what vLLM comes to in float32; it is in an environment of its own."""
    asked = {directory: (directory, ids, SCORED // 4, WRITTEN) for directory, ids, _ in jobs}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        subprocess.run(
            [python, "-c", VLLM, str(out)], input=json.dumps([*asked.values()]), text=True, check=True
        )
        results = dict(zip(asked, json.loads(out.read_text()), strict=True))
    added = []
    for row, (directory, _, written) in zip(rows, jobs, strict=True):
        loss, also_written = results[directory]
        vllm = also_written if loss is None else loss
        added.append(replace(row, vllm=vllm, same_in_vllm=also_written == written))
    return added


def table(rows: list[Compared]) -> str:
    """Draws the rows in Markdown."""
    lines = [
        "| model | layers | weights | transformers | llama.cpp | text | `gptailor check` | vLLM | text |",
        "| --- | --- | --- | ---: | ---: | --- | --- | ---: | --- |",
    ]
    for row in rows:
        other = row.cause or "does not load" if row.llama_cpp is None else f"{row.llama_cpp:.5f}"
        same = "same" if row.same_text else "differs"
        told = row.told.split(":")[0] or "nothing to say"
        in_vllm = f"{row.vllm:.5f}" if isinstance(row.vllm, float) else row.vllm or ""
        same_in_vllm = "" if row.vllm is None else "same" if row.same_in_vllm else "differs"
        measured = (f"{row.transformers:.5f}", other, same, told, in_vllm, same_in_vllm)
        cells = (row.model, row.change, row.weights, *measured)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Another model directory.")
    ] = None,
    only: Annotated[str, typer.Option(help="Only tiny families whose model type has this in its name.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="A file for the table.")] = None,
    vllm: Annotated[str, typer.Option(help="The Python of an environment that has vLLM.")] = "",
) -> None:
    quiet_libraries()
    if not os.environ.get("LLAMA_CPP"):
        raise SystemExit("LLAMA_CPP must name llama.cpp's directory, with its converter; see make interop")
    text = "\n".join(json.loads(line)["text"] for line in TEXT.read_text().splitlines()[:4])
    rows: list[Compared] = []
    jobs: list[Job] = []
    with tempfile.TemporaryDirectory() as root:

        def keep(row: Compared, job: Job) -> None:
            print(row, flush=True)
            rows.append(row)
            jobs.append(job)

        for compared in tiny(text, only, Path(root)):
            keep(*compared)
        for named in model or ():
            name, _, directory = named.partition("=")
            for outtype in ("f32", "auto"):
                keep(*compare(name, "as it is", Path(directory), text, outtype))
        if vllm:
            rows = with_vllm(rows, jobs, vllm)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if markdown is not None:
        markdown.write_text(table(rows))
    print(table(rows))
    if strange := [row for row in rows if not row.expected]:
        raise SystemExit(
            f"not as the check says: {', '.join(f'{row.model}, {row.change}' for row in strange)}"
        )


if __name__ == "__main__":
    typer.run(main)
