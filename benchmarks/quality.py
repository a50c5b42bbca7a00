"""Quality: our search, every baseline and the paper's own search, treated alike, at equal tokens and seconds.

    python benchmarks/quality.py --json FILE [--sizes 9 …] [--seeds 5] [--jobs 2] [--plots DIR] [--tiny]
                                 [--family DIR [--base DIR] [--texts DIR] [--without NAME …]
                                  [--outside NAME=FILE[:COLUMN] …] [--tokens N] [--held-out-tokens N]
                                  [--sequence-length N]] [--config FILE] [--train TEXT_DIR]
                                 [--arm NAME …]

For each number of layers that stays and each seed, every method prunes the family on a calibration set of
its own, which is drawn from the family's calibration texts with the seed; all methods of a seed see the
same. Our default search is given its budget in candidates, and repairs and tunes its best recipes as its
config says; every other method stops when it has scored as many tokens as that, repairs and tuning included,
if it does not end by itself before. Methods that do not end by themselves stand there twice: stopped by the
tokens and by the seconds of our search. All are compared on one held-out set: loss (nats per token) of each
domain, and the offline tasks' test splits. Then what every method came to is repaired and tuned, too, by the
public functions, with the texts, tokens and steps of our search, and compared again, each with its total
of tokens and seconds. A token that is differentiated counts three times.

`not repaired`, `not tuned`: our search before it repairs or tunes anything. `uidl`, repaired, is ReplaceMe.
`one merge + …`: ShortGPT prunes each merge of the whole family, and the merge for which it ends best on the
calibration set is pruned by ShortGPT, SLEB or EvoPress. `best member`: the same with each variant. `paper` is
paper_search.py, which needs SMAC3 (pip install smac) and is left out where that is not installed. Ablation,
at three quarters of the layers: removal from the base only, removal and selection, removal and merging.

--family names a directory laid out as recipes/demo, or one with `base` and a directory for each variant, a
model or an adapter (--base says where the base is, if not there), with --texts naming a directory that has
calibration/NAME.jsonl and held-out/NAME.jsonl; the member NAME, or else the base, teaches them. A domain that
is held out only, that --without leaves out of calibration, or that --outside names, is outside what is
calibrated on: it stands for itself, and is not in the mean.
What the file holds is not run again. With --train a larger family of 24 layers is trained first, as
train_family.py does, into the directory that --family names; on a GPU where there is one. --tiny measures a
random family of a few layers where --family names no other.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from common import DEMO, SEARCH, Tiny, tiny_family
from quality_bench import TASK_METRICS, Bench, Job, domain_losses, on_tasks
from quality_methods import ABLATION, ARMS, OURS, PAPER, RIVALS
from quality_report import report
from train_family import train_family

from gptailor_merge import open_session, quiet_libraries
from gptailor_merge.api.engine import pick_device

SHARES, ABLATED = (5 / 6, 3 / 4, 2 / 3, 7 / 12, 1 / 2), 3 / 4
"""Shares of the layers that stay."""
LARGER = {"layers": 24, "width": 256}
TASKS = ("gptailor_stories", "gptailor_encyclopedia", "gptailor_maths", "gptailor_code")
TINY_ARMS = (*RIVALS, "shortgpt", ABLATION[-1])
TINY_TUNED = (OURS, next(iter(RIVALS)))


def execute(job: Job) -> tuple[str, dict[str, Any]]:
    quiet_libraries()
    torch.set_num_threads(1)

    def tell(name: str, result: dict[str, Any]) -> None:
        print(f"{job.key}: {name} {result['held_out']['mean']:.4f}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as directory:
        return job.key, Bench(job, Path(directory)).run(tell)


def configuration(
    family: Path,
    *,
    base: Path | None = None,
    texts: Path | None = None,
    without: Sequence[str] = (),
    outside: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
    config: Path = SEARCH,
    tiny: bool = False,
) -> dict[str, Any]:
    """Returns a search config, by default the demo's, for another family and other texts.

    Args:
        family: a directory laid out as the demo's, which then has texts and tasks; or one of members.
        base: the base, if it is not in the family's directory.
        texts: has calibration/NAME.jsonl and held-out/NAME.jsonl; default the family's directory.
        without: domains that are held out only.
        outside: other texts that are held out, each NAME=FILE or NAME=FILE:COLUMN.
        sizes: replaces keys of the objectives and of the held-out set: tokens, held_out_tokens,
            sequence_length.
        config: has one objective and one held-out objective.
    """
    document: dict[str, Any] = yaml.safe_load(config.read_text())
    laid_out_as_demo = (family / "family").is_dir()
    models, texts = family / "family" if laid_out_as_demo else family, texts or family
    base = base or models / "base"
    variants = {}
    for directory in sorted(path for path in models.iterdir() if path.is_dir() and path != base):
        if (directory / "adapter_config.json").is_file():
            variants[directory.name] = f"{base}+{directory}"
        elif (directory / "config.json").is_file() and directory.name != "base":
            variants[directory.name] = str(directory)
    document["family"] = {"base": str(base), "variants": variants}
    calibrated, held_out = (texts_in(texts / kind) for kind in ("calibration", "held-out"))
    calibrated = {name: file for name, file in calibrated.items() if name not in without}
    for text in outside:
        name, _, source = text.partition("=")
        file, _, column = source.partition(":")
        held_out[name] = {"file": str(Path(file).resolve()), "column": column or "text"}
    changed = dict(sizes or {})
    held_out_tokens = changed.pop("held_out_tokens", None)
    (objective,), (measured,) = document["objectives"], document["held_out"]
    objective |= {"data": calibrated, "teacher": {n: n for n in calibrated if n in variants}, **changed}
    measured |= {"data": held_out, **{k: v for k, v in changed.items() if k == "sequence_length"}}
    if held_out_tokens is not None:
        measured["tokens"] = held_out_tokens
    if tiny:
        objective |= {"tokens": 512, "sequence_length": 32}
        measured |= {"tokens": 512, "sequence_length": 32}
        document["search"] |= {"budget": 8, "population": 4}
        document["repair"] = {"finalists": 1}
        document["tune"] = {"finalists": 1, "steps": 1, "tokens": 512}
    if laid_out_as_demo:
        tasks = {"kind": "task", "tasks": list(TASKS), "include_path": str(DEMO / "tasks"), "split": "test"}
        limit = 4 if tiny else 100
        document["held_out"] += [{**tasks, "metric": metric, "limit": limit} for metric in TASK_METRICS]
    return document


def texts_in(directory: Path) -> dict[str, Any]:
    """Returns name -> file of the texts in a directory."""
    return {file.stem: str(file) for file in sorted(directory.glob("*.jsonl"))}


def depth_of(config: Mapping[str, Any]) -> int:
    """Returns the number of layers of a config's base."""
    document = json.loads((Path(config["family"]["base"]) / "config.json").read_text())
    return int(document["num_hidden_layers"])


def members(config: Mapping[str, Any], device: str = "auto") -> dict[str, Any]:
    """Measures the whole models on what is held out."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "search.yml"
        file.write_text(yaml.safe_dump({**config, "target": {"remove": 1}}))
        scored = open_session(file, device=device).members()
    calibrated = config["objectives"][0]["data"]
    return {
        name: {"held_out": domain_losses(scores, calibrated), "tasks": on_tasks(scores)}
        for name, scores in scored.items()
    }


def main(
    json_file: Annotated[Path, typer.Option("--json", help="The file that the results are in, and go to.")],
    sizes: Annotated[list[int] | None, typer.Option(help="Layers that stay; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
    plots: Annotated[Path | None, typer.Option(help="A directory for pictures.")] = None,
    family: Annotated[
        Path | None, typer.Option(help="A directory laid out as recipes/demo, or of members.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="The base, if it is not FAMILY/base.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Has calibration/ and held-out/.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A domain to hold out only.")] = None,
    outside: Annotated[list[str] | None, typer.Option(help="NAME=FILE[:COLUMN] to hold out, too.")] = None,
    search_config: Annotated[
        Path, typer.Option("--config", help="The search config that budgets are taken of.")
    ] = SEARCH,
    tokens: Annotated[int | None, typer.Option(help="Calibration tokens.")] = None,
    held_out_tokens: Annotated[int | None, typer.Option(help="Held-out tokens.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens in a sequence.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="A method beside our search; default all.")] = None,
    train: Annotated[Path | None, typer.Option(help="Texts to train a larger family on.")] = None,
    tiny: Tiny = False,
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if tiny and family is None:
            family = Path(scratch)
            tiny_family(family, depth=8)
        family = family or DEMO
        if train is not None and not (family / "training.json").exists():
            train_family(train, family, device=str(pick_device("auto")), **LARGER)
        given = {"tokens": tokens, "held_out_tokens": held_out_tokens, "sequence_length": sequence_length}
        config = configuration(
            family.resolve(),
            base=None if base is None else base.resolve(),
            texts=None if texts is None else texts.resolve(),
            without=without or (),
            outside=outside or (),
            sizes={name: number for name, number in given.items() if number is not None},
            config=search_config,
            tiny=tiny,
        )
        depth = depth_of(config)
        if tiny:
            sizes, seeds = [round(ABLATED * depth)], 1
        sizes = sizes or [round(share * depth) for share in SHARES]
        if unknown := set(arm or ()) - set(ARMS):
            raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join(ARMS)}")
        results: dict[str, Any] = json.loads(json_file.read_text()) if json_file.exists() else {}
        text = yaml.safe_dump(config)
        wanted = [
            job_of(text, layers, seed, arm, depth=depth, tiny=tiny)
            for seed in range(seeds)
            for layers in sizes
        ]
        quiet_libraries()
        if "members" not in results:
            results["members"] = members(config)
        missing = [job for job in wanted if job.key not in results]
        for key, result in done(missing, 1 if tiny else jobs):
            results[key] = result
            json_file.write_text(json.dumps(results, indent=1))
            means = {name: round(method["held_out"]["mean"], 4) for name, method in result.items()}
            print(key, means, flush=True)
        report(results, sorted({job.layers for job in wanted}, reverse=True), seeds, plots)


def job_of(config: str, layers: int, seed: int, arms: Sequence[str] | None, *, depth: int, tiny: bool) -> Job:
    """Returns a job with the methods that are asked for: all, without the ablation except at one size."""
    chosen = arms or TINY_ARMS if tiny else arms or ARMS
    left_out = () if arms or layers == round(ABLATED * depth) else ABLATION
    missing = (PAPER,) if find_spec("smac") is None else ()
    names = tuple(name for name in chosen if name not in (*left_out, *missing))
    tuned = {"tuned": TINY_TUNED} if tiny else {}
    return Job(config, layers, seed, names, **tuned, tiny=tiny)


def done(wanted: Sequence[Job], processes: int) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yields the results of jobs as they are finished; one process is this one."""
    if processes == 1:
        yield from map(execute, wanted)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(execute, job) for job in wanted]):
            yield future.result()


if __name__ == "__main__":
    typer.run(main)
