"""What is measured on one GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py --json FILE --family DIR --texts DIR [--base DIR] [--part NAME …] [--tiny]
                             [--outside NAME=FILE[:COLUMN] …]

Every part has a bound in seconds: when it is reached, the part ends with the results that it has by then and
is marked as ended by its bound. FILE is written again after every result, so that nothing is lost of a run
that is cut off. --family and --texts are what quality.py takes: a real family, as ../shared/smollm2-family
makes one. --tiny runs every part with a random family of a few layers, on the CPU.

A part is an entry of PARTS: its name, its bound, and a function that takes what is measured and hands over
each result.

`quality`: 22 of 30 layers, two seeds; our search with its ablations, the baselines, and the merge rivals,
which are repaired and tuned as our own search is. Both seeds of a method are run before the next method.
`heal`: what the first seed's recipes, or that of --recipe, come to when they are healed on TEXTS/train; see
heal.py.

These are run where --part names them; each takes at most 90 s:
`engine-1b`, `engine-7b`: random families of these shapes in memory; candidates and tokens a second of all
arms, the share of the matmul rate of the same run, composing, peak memory.
`host-bank`: layers of 7B's shape on the device against the host, and whether the scores are the same.
`search-135m`: the family of --family at two batch sizes, whole and racing, and a search of it.
`equal`: how far apart the scores of a generation are, computed in eight ways.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import gpu_engine
import torch
import typer
import yaml
from bounded import FigureFile, bounded
from common import Tiny, tiny_family
from gpu_parts import Note, Part, Subject
from heal import HealBench, table, treatments
from quality import configuration, depth_of, members
from quality_bench import Bench, Job
from quality_methods import ABLATION, OURS, RIVALS
from quality_report import report
from rich.console import Console

from gptailor_merge import Recipe, quiet_libraries
from gptailor_merge.api.engine import pick_device

SHARE_KEPT, SEEDS, BUDGET = 22 / 30, 2, 120
SIZES = {"tokens": 16_384, "held_out_tokens": 65_536, "sequence_length": 512}
ARMS = (OURS, *RIVALS, *ABLATION, "shortgpt", "sleb", "evopress")
TINY_ARMS = (OURS, next(iter(RIVALS)))
HEALED_TOKENS = (200_000, 500_000, 2_000_000)


def quality(subject: Subject, note: Note) -> None:
    """Compares the methods at one size."""
    note({"members": members(subject.config, subject.device)})
    layers, text = round(SHARE_KEPT * subject.depth), yaml.safe_dump(subject.config)
    tuned = TINY_ARMS if subject.tiny else (OURS, "not tuned", "not repaired", *RIVALS)
    benches = []
    for seed in range(SEEDS):
        directory = subject.directory / str(seed)
        directory.mkdir()
        job = Job(text, layers, seed, tuned=tuned, tiny=subject.tiny)
        benches.append(Bench(job, directory, subject.device))
    failures = []
    for arm in TINY_ARMS if subject.tiny else ARMS:
        for bench in benches:
            try:
                for name, result in bench.methods.results(arm):
                    note({bench.job.key: {name: bench.measured(name, result)}})
                    if bench is benches[0]:
                        subject.recipes[name] = bench.refined[name]
            except Exception as error:  # the other methods are worth their time all the same
                traceback.print_exc()
                failures.append(f"{arm}, {bench.job.key}: {error}")
    if failures:
        raise RuntimeError("; ".join(failures))


def quality_tables(results: dict[str, Any], subject: Subject) -> None:
    """Prints what the methods came to, as far as they were run."""
    if "members" in results:
        report(results, [round(SHARE_KEPT * subject.depth)], SEEDS, None)


def heal(subject: Subject, note: Note) -> None:
    """Heals the recipes that there are."""
    bench = HealBench.of(subject.config, subject.texts, subject.device)
    counts = (256,) if subject.tiny else HEALED_TOKENS
    known = [arm for arm in RIVALS if arm in subject.recipes]
    note({OURS: {"held_out": bench.loss(subject.recipes[OURS])}})
    for number, treatment in enumerate(treatments(counts, list(bench.train), known)):
        out = subject.directory / f"healed-{number}"
        note({treatment.name: bench.healed(subject.recipes[treatment.start], treatment, out)})


def heal_table(results: dict[str, Any], subject: Subject) -> None:
    """Prints what healing came to, as far as it was done."""
    Console(width=120).print(table(results))


PARTS = (
    Part("quality", 300, quality, quality_tables),
    Part("heal", 170, heal, heal_table),
    *gpu_engine.PARTS,
)
"""All parts, in the order in which they are run; the bounds of those that need not be named add up to less
than eight minutes, and those of the others, too."""


def run_part(part: Part, subject: Subject, figures: FigureFile) -> None:
    """Runs a part; writes how it ended: "whole", "bound", or what went wrong."""
    begun, results = time.perf_counter(), dict[str, Any]()
    entry: dict[str, Any] = {"bound": part.seconds, "ended": "not yet", "results": results}

    def note(more: dict[str, Any]) -> None:
        for name, value in more.items():
            results[name] = {**results.get(name, {}), **value}
        entry["seconds"] = round(time.perf_counter() - begun, 1)
        figures.note(**{part.name: entry})

    try:
        with bounded(part.seconds) as bound:
            part.run(subject, note)
        entry["ended"] = "bound" if bound.reached else "whole"
    except Exception as error:  # the other parts are worth their time all the same
        traceback.print_exc()
        entry["ended"] = f"failed: {error}"
    note({})


def main(
    json_file: Annotated[Path, typer.Option("--json", help="The file that the results go to.")],
    family: Annotated[Path | None, typer.Option(help="A directory of members; see quality.py.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Has calibration/ and held-out/.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base, if it is not FAMILY/base.")] = None,
    outside: Annotated[list[str] | None, typer.Option(help="NAME=FILE[:COLUMN] to hold out, too.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="A part to run; default quality and heal.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe for heal, where quality is not run before.")
    ] = None,
    tiny: Tiny = False,
) -> None:
    if not tiny and (family is None or texts is None):
        raise typer.BadParameter("expected --family and --texts, or --tiny")
    if unknown := set(part or ()) - {known.name for known in PARTS}:
        raise typer.BadParameter(
            f"no part {', '.join(unknown)}; known are {', '.join(p.name for p in PARTS)}"
        )
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        if tiny:
            tiny_family(Path(scratch))
            family, texts, base = Path(scratch, "family"), Path(scratch), None
        assert family is not None
        assert texts is not None
        config = configuration(
            family.resolve(),
            base=None if base is None else base.resolve(),
            texts=texts.resolve(),
            outside=outside or (),
            sizes=SIZES,
            tiny=tiny,
        )
        if not tiny:
            config["search"]["budget"] = BUDGET
            del config["tune"]  # the demo's is short; everybody else's is the default
        depth = depth_of(config)
        device = "cpu" if tiny else str(pick_device("auto"))
        shared = Path(scratch) / "parts"
        shared.mkdir()
        recipes = {} if recipe is None else {OURS: Recipe.load(recipe)}
        subject = Subject(config, texts.resolve(), depth, device, tiny, shared, recipes)
        name = torch.cuda.get_device_name() if device.startswith("cuda") else device
        figures = FigureFile(json_file, {"device": name, "torch": torch.__version__})
        for chosen in PARTS:
            if chosen.name in part if part else not chosen.only_if_named:
                run_part(chosen, subject, figures)
                entry = figures.document[chosen.name]
                print(
                    f"{chosen.name}: {entry['ended']}, {entry['seconds']} s of {chosen.seconds}", flush=True
                )
                chosen.show(entry["results"], subject)
    ended = [figures.document[known.name]["ended"] for known in PARTS if known.name in figures.document]
    if any(how.startswith("failed") for how in ended):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
