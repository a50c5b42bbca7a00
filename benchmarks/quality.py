"""Quality: our search, every baseline and the paper's own search, at equal scored tokens.

    python benchmarks/quality.py --json FILE [--sizes 9 …] [--seeds 5] [--jobs 2] [--plots DIR]
                                 [--family DIR [--train TEXT_DIR]] [--tiny]

For each number of layers that stays and each seed, every method prunes the family on a calibration set of
its own, which is drawn from the family's calibration texts with the seed; all methods of a seed see the
same. Our default search is given its budget in candidates, and repairs its best recipes at their cuts;
every other method stops when it has scored as many tokens as that, repairs included, if it does not end by
itself before. All are compared on one held-out set: loss (nats per token) of each domain, and the offline
tasks' test splits. Then what every method came to is repaired at its cuts, too, with maps fitted to the
same calibration set, and compared again.

`not repaired` is our search before it repairs anything. `uidl`, repaired, is ReplaceMe. `best member` and
`best merge`: ShortGPT prunes each variant, and each merge of the whole family; the one that is best on the
calibration set stands for all. `paper` is paper_search.py, which needs SMAC3 (pip install smac) and is left
out by --tiny where that is not installed. Ablation,
at three quarters of the layers, none of it repaired: removal from the base only, removal and selection,
removal and merging.
What the file holds is not run again. With --train a larger family of 24 layers is trained first, as
train_family.py does, into the directory that --family names; on a GPU where there is one.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from common import DEMO, Tiny
from quality_report import OURS, PAPER, PLAIN, report
from train_family import train_family

from gptailor_merge import (
    Plan,
    Recipe,
    RecipeError,
    SearchConfig,
    Session,
    Space,
    Trace,
    open_session,
    plan,
    quiet_libraries,
    recipe_of,
)
from gptailor_merge import repair as repair_recipe
from gptailor_merge.api.engine import MERGES, Evaluator, Passes, Point, Scores, means_of, pick_device

SHARES, ABLATED = (5 / 6, 3 / 4, 2 / 3, 7 / 12, 1 / 2), 3 / 4
"""Shares of the layers that stay."""
LARGER = {"layers": 24, "width": 256}
TEXTS, TASK_METRICS = "perplexity", ("acc", "margin")
BASELINES = ("one_shot", "shortgpt", "uidl", "laco", "sleb", "evopress", "random")
ABLATION = ("remove (base only)", "remove + select", "remove + merge")
ENDLESS = ("evopress", "random")
"""Baselines that go on as long as they are let."""
ENDLESS_BUDGET = 4
"""A method that is stopped by its tokens may propose this many times our candidates, duplicates included."""
TASKS = ("gptailor_stories", "gptailor_encyclopedia", "gptailor_maths", "gptailor_code")
TINY_BASELINES = ("shortgpt", "random")


@dataclass(frozen=True)
class Job:
    """One size and one seed.

    Attributes:
        config: the search config, as YAML.
        ablate: also searches smaller spaces.
        tiny: runs few methods, and the paper's search only if SMAC3 is installed.
    """

    config: str
    layers: int
    seed: int
    ablate: bool
    tiny: bool

    @property
    def key(self) -> str:
        return f"{self.layers} layers, seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """The best recipe so far, when a number of tokens and seconds had been spent."""

    recipe: Recipe
    loss: float
    tokens: int
    seconds: float

    @property
    def plan(self) -> Plan:
        return plan(self.recipe)


@dataclass(frozen=True)
class Spent:
    tokens: int
    seconds: float


class MergeOnly(Space):
    """A space in which every kept layer is merged."""

    def decode(self, point: Point) -> Any:
        members = len(self.models)
        kind = (members + point["kind"] * (self.kinds - members)) / self.kinds
        return super().decode({**point, "kind": kind})

    def encode(self, start: Any, rng: np.random.RandomState | None = None, *, nearest: bool = False) -> Point:
        """Returns a random point without the same layers: what a search starts from selects."""
        kept = set((start if isinstance(start, Plan) else plan(start)).kept)
        point = self.random(rng or np.random.RandomState(0))
        removal = np.array([float(layer not in kept) for layer in range(self.depth)])
        return {**point, "removal": removal}


def drawn(config: Mapping[str, Any], seed: int, directory: Path) -> dict[str, Any]:
    """Returns the config with its calibration texts in the seed's order; a search takes the first ones."""
    objectives = []
    for objective in config["objectives"]:
        data = {}
        for name, file in objective["data"].items():
            lines = Path(file).read_text(encoding="utf-8").splitlines()
            random.Random(f"{seed} {name}").shuffle(lines)
            data[name] = str(directory / f"{name}.jsonl")
            Path(data[name]).write_text("\n".join(lines) + "\n", encoding="utf-8")
        objectives.append({**objective, "data": data})
    return {**config, "objectives": objectives, "seed": seed}


class Bench:
    """Runs all methods of a size and a seed, on the same session."""

    def __init__(self, job: Job, directory: Path) -> None:
        self.job, self.directory = job, directory
        sized = {**yaml.safe_load(job.config), "target": {"layers": job.layers}}
        document = drawn(sized, job.seed, directory)
        (directory / "search.yml").write_text(yaml.safe_dump(document))
        self.config = SearchConfig.load(directory / "search.yml")
        self.session: Session = open_session(self.config)
        self.texts, self.items = parts_of(self.session)
        self.calibration: dict[str, Any] = document["objectives"][0]
        self.results: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        """Runs every method, ours first: its tokens are the others' limit."""
        steps, spent = traced(self.session.search(finalists=True), None)
        self.note(OURS, steps, spent)
        plain = [step for step in steps if not step.plan.repaired]
        self.note(PLAIN, plain, Spent(plain[-1].tokens, plain[-1].seconds))
        limit = spent.tokens
        for name in TINY_BASELINES if self.job.tiny else BASELINES:
            self.note(name, *self.baseline(name, limit))
        most = 1 if self.job.tiny else None
        variants = [{"member": name} for name in self.config.family.variants][:most]
        self.note("best member", *self.best_of(variants, limit))
        self.note("best merge", *self.best_of([{"merge": name} for name in MERGES][:most], limit))
        if not self.job.tiny or find_spec("smac"):
            self.note(PAPER, *self.as_in_the_paper(limit))
        if self.job.ablate:
            spaces = dict(zip(ABLATION, self.smaller_spaces(), strict=True))
            for name in ABLATION[-1:] if self.job.tiny else ABLATION:
                budget = ENDLESS_BUDGET * self.config.search.budget
                trace = self.session.search(space=spaces[name], budget=budget, tokens=limit)
                self.note(name, *traced(trace, limit))
        return self.results

    def note(self, name: str, steps: Sequence[Step], spent: Spent) -> None:
        """Measures what a method came to: held out as it is, step by step, and repaired."""
        losses = self.losses([step.plan for step in steps])
        last = steps[-1]
        # What is repaired already stays as it is.
        repaired, seconds = (last.recipe, 0.0) if last.plan.repaired else self.repaired(last.recipe)
        result: dict[str, Any] = {
            "searched": last.loss,
            "tokens": spent.tokens,
            "seconds": spent.seconds,
            "held_out": losses[-1],
            "tasks": self.tasks(last.plan),
            "steps": [
                {"tokens": s.tokens, "seconds": s.seconds, "searched": s.loss, "mean": loss["mean"]}
                for s, loss in zip(steps, losses, strict=True)
            ],
            "kept": list(last.plan.kept),
            "recipe": last.recipe.to_yaml(),
        }
        if repaired is not None:
            result["repaired"] = {**self.losses([plan(repaired)])[0], "seconds": seconds}
        self.results[name] = result

    def losses(self, plans: Sequence[Plan]) -> list[dict[str, float]]:
        """Returns held-out losses of each domain and their mean, nats per token."""
        return [means_of(outcome.scores[TEXTS]) for outcome in self.texts.score(plans)]

    def tasks(self, plan: Plan) -> dict[str, dict[str, float]]:
        """Returns accuracy and margin on each task."""
        (outcome,) = self.items.score([plan])
        return on_tasks(outcome.scores)

    def repaired(self, recipe: Recipe) -> tuple[Recipe | None, float]:
        """Repairs a recipe with maps fitted to the calibration set; None where no cut can be repaired."""
        begun = time.perf_counter()
        try:
            result = repair_recipe(
                recipe,
                [f"{name}={file}" for name, file in self.calibration["data"].items()],
                Path(tempfile.mkdtemp(dir=self.directory)),
                tokens=self.calibration["tokens"],
                sequence_length=self.calibration["sequence_length"],
                device=str(self.session.device),
            )
        except RecipeError:
            return None, 0.0
        return result.recipe, time.perf_counter() - begun

    def baseline(self, name: str, limit: int, **subject: str) -> tuple[list[Step], Spent]:
        """Prunes by a baseline; one that does not end by itself is stopped at the limit."""
        tokens = limit if name in ENDLESS else None
        budget = ENDLESS_BUDGET * self.config.search.budget
        return traced(self.session.prune(name, budget=budget, tokens=tokens, **subject), tokens)

    def best_of(self, subjects: Sequence[Mapping[str, str]], limit: int) -> tuple[list[Step], Spent]:
        """Prunes several models by ShortGPT, and returns the best on the calibration set and all costs."""
        traces = [self.baseline("shortgpt", limit, **subject) for subject in subjects]
        best = min((steps[-1] for steps, _ in traces), key=lambda step: step.loss)
        spent = Spent(sum(s.tokens for _, s in traces), sum(s.seconds for _, s in traces))
        return [replace(best, tokens=spent.tokens, seconds=spent.seconds)], spent

    def as_in_the_paper(self, limit: int) -> tuple[list[Step], Spent]:
        from paper_search import search as search_as_in_the_paper

        begun = time.perf_counter()
        trials = search_as_in_the_paper(self.session.space, self.session, self.job.seed, limit)
        steps = improvements(Step(t.recipe, t.loss, t.tokens, t.seconds) for t in trials)
        return steps, Spent(limit, time.perf_counter() - begun)

    def smaller_spaces(self) -> Iterator[Space]:
        """Yields the spaces in the order of ABLATION."""
        space = self.session.space
        yield replace(space, models=space.models[:1], methods=())
        yield replace(space, methods=())
        yield MergeOnly(**{field.name: getattr(space, field.name) for field in fields(space)})


def traced(trace: Trace, limit: int | None) -> tuple[list[Step], Spent]:
    """Returns the improvements in a search up to a number of tokens, and what was spent."""
    steps = [
        Step(recipe_of(candidate), candidate.loss, total, stamp)
        for candidate, total, stamp in zip(trace.candidates, trace.tokens, trace.stamps, strict=True)
        if candidate.digest in trace.finished
        and candidate.loss is not None
        and (limit is None or total <= limit)
    ]
    return improvements(steps), Spent(trace.tokens[-1], trace.stamps[-1])


def parts_of(session: Session) -> tuple[Evaluator, Evaluator]:
    """Returns evaluators for what is held out: for its texts, and for its items, which take longer."""
    passes = session.held_out_evaluator.passes
    evaluators = []
    for of_items in (False, True):
        objectives = [o for o in passes.objectives if (o.name != TEXTS) == of_items]
        rungs = [[batch for batch in rung if bool(batch.packs) == of_items] for rung in passes.rungs]
        evaluators.append(Evaluator(session.composer, Passes(objectives, rungs)))
    return evaluators[0], evaluators[1]


def improvements(steps: Iterable[Step]) -> list[Step]:
    """Returns the steps that are better than all before."""
    better: list[Step] = []
    for step in steps:
        if not better or step.loss < better[-1].loss:
            better.append(step)
    return better


def execute(job: Job) -> tuple[str, dict[str, Any]]:
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        return job.key, Bench(job, Path(directory)).run()


def configuration(family: Path, *, tiny: bool = False) -> dict[str, Any]:
    """Returns the demo's search config, for a family in a directory laid out as the demo's, and its tasks."""
    document: dict[str, Any] = yaml.safe_load((DEMO / "search.yml").read_text())
    document["family"] = {
        "base": str(family / "family" / "base"),
        "variants": {name: str(family / "family" / name) for name in document["family"]["variants"]},
    }
    for section in ("objectives", "held_out"):
        for objective in document[section]:
            objective["data"] = {name: str(family / file) for name, file in objective["data"].items()}
            if tiny:
                objective |= {"tokens": 512, "sequence_length": 32}
    tasks = {"kind": "task", "tasks": list(TASKS), "include_path": str(DEMO / "tasks"), "split": "test"}
    limit = 4 if tiny else 100
    document["held_out"] += [{**tasks, "metric": metric, "limit": limit} for metric in TASK_METRICS]
    if tiny:
        document["search"] |= {"budget": 8, "population": 4}
        document["repair"] = {"finalists": 1}
    return document


def members(config: Mapping[str, Any]) -> dict[str, Any]:
    """Measures the whole models on what is held out."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "search.yml"
        file.write_text(yaml.safe_dump({**config, "target": {"remove": 1}}))
        scored = open_session(file).members()
    return {
        name: {"held_out": means_of(scores[TEXTS]), "tasks": on_tasks(scores)}
        for name, scores in scored.items()
    }


def on_tasks(scores: Scores) -> dict[str, dict[str, float]]:
    """Returns for each task its accuracy, and its margin in nats."""
    return {task: {name: scores[name][task].natural for name in TASK_METRICS} for task in scores["acc"]}


def main(
    json_file: Annotated[Path, typer.Option("--json", help="The file that the results are in, and go to.")],
    sizes: Annotated[list[int] | None, typer.Option(help="Layers that stay; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
    plots: Annotated[Path | None, typer.Option(help="A directory for pictures.")] = None,
    family: Annotated[Path, typer.Option(help="A directory laid out as recipes/demo.")] = DEMO,
    train: Annotated[Path | None, typer.Option(help="Texts to train a larger family on.")] = None,
    tiny: Tiny = False,
) -> None:
    if train is not None and not (family / "training.json").exists():
        train_family(train, family, device=str(pick_device("auto")), **LARGER)
    depth = json.loads((family / "family" / "base" / "config.json").read_text())["num_hidden_layers"]
    if tiny:
        sizes, seeds = [round(ABLATED * depth)], 1
    sizes = sizes or [round(share * depth) for share in SHARES]
    config = configuration(family.resolve(), tiny=tiny)
    results: dict[str, Any] = json.loads(json_file.read_text()) if json_file.exists() else {}
    text = yaml.safe_dump(config)
    wanted = [
        Job(text, layers, seed, layers == round(ABLATED * depth), tiny)
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


def done(wanted: Sequence[Job], processes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the results of jobs as they are finished; one process is this one."""
    if processes == 1:
        yield from map(execute, wanted)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(execute, job) for job in wanted]):
            yield future.result()


if __name__ == "__main__":
    typer.run(main)
