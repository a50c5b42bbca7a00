"""Quality: our search, every baseline and the paper's own search, at equal scored tokens.

    python benchmarks/quality.py --json FILE [--sizes 9 …] [--seeds 5] [--jobs 2] [--plots DIR]
                                 [--family DIR [--train TEXT_DIR]]

For each number of layers that stays and each seed, every method prunes the family on a calibration set of
its own, which is drawn from the family's calibration texts with the seed; all methods of a seed see the
same. Our default search is given its budget in candidates, and repairs its best recipes at their cuts;
every other method stops when it has scored as many tokens as that, repairs included, if it does not end by
itself before. All are compared on one held-out set: loss (nats per token) of each domain, and the offline
tasks' test splits. Then what every method came to is repaired at its cuts, too, with maps fitted to the
same calibration set, and compared again.

`not repaired` is our search before it repairs anything. `uidl`, repaired, is ReplaceMe. `best member` and
`best merge`: ShortGPT prunes each variant, and each merge of the whole family; the one that is best on the
calibration set stands for all. `paper` is paper_search.py, which needs SMAC3 (pip install smac). Ablation,
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from paper_search import search as search_as_in_the_paper
from quality_report import report
from train_family import main as train_family

from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import RecipeError
from gptailor_merge.models.devices import compute_dtype, pick_device
from gptailor_merge.objectives.scores import Score, Scores
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.edits import map_files
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.finalists import repair_finalists
from gptailor_merge.repair.repaired_recipe import repair_recipe as repair
from gptailor_merge.runs.journal import Journal
from gptailor_merge.runs.session import Plans, Session, measure_members, prepare, start
from gptailor_merge.scoring.evaluator import Evaluator
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.search import driver
from gptailor_merge.search.baselines.choice import Choice
from gptailor_merge.search.baselines.subject import MERGES
from gptailor_merge.search.candidates import Candidate
from gptailor_merge.space.points import Point
from gptailor_merge.space.space import Space

DEMO = Path(__file__).parent.parent / "recipes" / "demo"
OURS, PLAIN, PAPER = "default search", "not repaired", "paper"
SHARES, ABLATED = (5 / 6, 3 / 4, 2 / 3, 7 / 12, 1 / 2), 3 / 4
"""Of the layers, how many stay."""
LARGER = {"layers": 24, "width": 256}
TEXTS, TASK_METRICS = "perplexity", ("acc", "margin")
BASELINES = ("one_shot", "shortgpt", "uidl", "laco", "sleb", "evopress", "random")
ABLATION = ("remove (base only)", "remove + select", "remove + merge")
ENDLESS = ("evopress", "random")
"""Baselines that go on as long as they are let."""
ENDLESS_BUDGET = 4
"""What is stopped by tokens may propose so many times our candidates, duplicates included."""
TASKS = ("gptailor_stories", "gptailor_encyclopedia", "gptailor_maths", "gptailor_code")
OnCandidate = Callable[[Candidate], None]


class EnoughError(Exception):
    """As many tokens as a method may score have been scored."""


@dataclass(frozen=True)
class Job:
    """One size and one seed."""

    config: str
    layers: int
    seed: int
    ablate: bool

    @property
    def key(self) -> str:
        return f"{self.layers} layers, seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """The best recipe so far, when so many tokens and seconds were spent."""

    recipe: Recipe
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Spent:
    tokens: int
    seconds: float


class MergeOnly(Space):
    """Every kept layer is merged."""

    def decode(self, point: Point) -> Plan:
        members = len(self.models)
        kind = (members + point["kind"] * (self.kinds - members)) / self.kinds
        return super().decode({**point, "kind": kind})

    def encode(self, plan: Plan, rng: np.random.RandomState | None = None, *, nearest: bool = False) -> Point:
        """A random point without the same layers: what a search starts from selects."""
        point = self.random(rng or np.random.RandomState(0))
        kept = set(plan.kept)
        point["removal"] = np.array([float(layer not in kept) for layer in range(self.depth)])
        return point


def drawn(config: Mapping[str, Any], seed: int, directory: Path) -> dict[str, Any]:
    """The config with the calibration texts in an order of the seed; the search takes the first ones."""
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
    """What all methods of a size and a seed share."""

    def __init__(self, job: Job, directory: Path) -> None:
        self.job, self.directory = job, directory
        sized = {**yaml.safe_load(job.config), "target": {"layers": job.layers}}
        made = drawn(sized, job.seed, directory)
        (directory / "search.yml").write_text(yaml.safe_dump(made))
        self.config = SearchConfig.load(directory / "search.yml")
        self.plans: Plans = prepare(self.config)
        self.device = pick_device("auto")
        self.session: Session = start(self.plans, self.device)
        self.texts, self.items = parts_of(self.session)
        self.data = dict(made["objectives"][0]["data"])
        self.found: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        """Every method, ours first: its tokens are the others' limit."""
        steps, spent = self.journaled(lambda *given: self.searched(self.plans.space, *given), None)
        self.note(OURS, steps, spent)
        plain = [step for step in steps if not map_files(step.recipe)]
        self.note(PLAIN, plain, Spent(plain[-1].tokens, plain[-1].seconds))
        limit = spent.tokens
        for name in BASELINES:
            self.note(name, *self.baseline(Choice(name), limit))
        variants = [Choice("shortgpt", member=name) for name in self.config.family.variants]
        self.note("best member", *self.best_of(variants, limit))
        self.note("best merge", *self.best_of([Choice("shortgpt", merge=name) for name in MERGES], limit))
        self.note(PAPER, *self.as_in_the_paper(limit))
        if self.job.ablate:
            for name, space in zip(ABLATION, self.smaller_spaces(), strict=True):
                self.note(name, *self.journaled(lambda *given, s=space: self.searched(s, *given), limit))
        return self.found

    def note(self, name: str, steps: Sequence[Step], spent: Spent) -> None:
        """What a method came to: held out as it is, step by step, and repaired."""
        losses = self.losses([step.recipe for step in steps])
        last = steps[-1]
        # What is repaired already stays as it is.
        repaired, seconds = (last.recipe, 0.0) if map_files(last.recipe) else self.repaired(last.recipe)
        made: dict[str, Any] = {
            "searched": last.loss,
            "tokens": spent.tokens,
            "seconds": spent.seconds,
            "held_out": losses[-1],
            "tasks": self.tasks(last.recipe),
            "steps": [
                {"tokens": s.tokens, "seconds": s.seconds, "searched": s.loss, "mean": loss["mean"]}
                for s, loss in zip(steps, losses, strict=True)
            ],
            "kept": list(plan(last.recipe).kept),
            "recipe": last.recipe.to_yaml(),
        }
        if repaired is not None:
            made["repaired"] = {**self.losses([repaired])[0], "seconds": seconds}
        self.found[name] = made

    def losses(self, recipes: Sequence[Recipe]) -> list[dict[str, float]]:
        """Held out, of each domain and their mean, nats per token."""
        return [means(outcome.scores) for outcome in self.texts.score([plan(recipe) for recipe in recipes])]

    def tasks(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        """See on_tasks."""
        (outcome,) = self.items.score([plan(recipe)])
        return on_tasks(outcome.scores)

    def repaired(self, recipe: Recipe) -> tuple[Recipe | None, float]:
        """With maps at the cuts that are fitted to the calibration set; None where none can be."""
        begun = time.perf_counter()
        (objective,) = self.config.objectives
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        try:
            made = repair(
                recipe,
                self.data,
                directory,
                tokens=objective.tokens,
                sequence_length=objective.sequence_length,
                device=self.device,
            )
        except RecipeError:
            return None, 0.0
        return made.recipe, time.perf_counter() - begun

    def searched(self, space: Space, journal: Journal, on_candidate: OnCandidate, limit: int | None) -> None:
        settings = self.session.settings
        if limit is not None:
            settings = replace(settings, budget=ENDLESS_BUDGET * settings.budget)
        driver.search(
            space,
            self.session.evaluator,
            journal,
            settings,
            hidden=self.session.hidden,
            on_candidate=on_candidate,
        )
        if limit is None:
            directory = Path(tempfile.mkdtemp(dir=self.directory))
            repair_finalists(self.plans.family, self.session, journal, self.config.repair, directory)

    def baseline(self, choice: Choice, limit: int) -> tuple[list[Step], Spent]:
        """A method that ends by itself does; the others are stopped."""
        endless = choice.name in ENDLESS
        settings = replace(self.session.settings, budget=ENDLESS_BUDGET * self.config.search.budget)

        def prune(journal: Journal, on_candidate: OnCandidate, limit: int | None) -> None:
            driver.prune(
                self.plans.space,
                self.session.evaluator,
                journal,
                settings,
                choice.method,
                subject=choice.subject(self.plans.family, self.plans.space),
                hidden=self.session.hidden,
                on_candidate=on_candidate,
            )

        return self.journaled(prune, limit if endless else None)

    def best_of(self, choices: Sequence[Choice], limit: int) -> tuple[list[Step], Spent]:
        """The one that is best on the calibration set; what all of them took."""
        made = [self.baseline(choice, limit) for choice in choices]
        best = min((steps[-1] for steps, _ in made), key=lambda step: step.loss)
        spent = Spent(sum(s.tokens for _, s in made), sum(s.seconds for _, s in made))
        return [replace(best, tokens=spent.tokens, seconds=spent.seconds)], spent

    def as_in_the_paper(self, limit: int) -> tuple[list[Step], Spent]:
        begun = time.perf_counter()
        trials = search_as_in_the_paper(self.plans.space, self.session, self.job.seed, limit)
        steps = improvements(Step(t.recipe, t.loss, t.tokens, t.seconds) for t in trials)
        return steps, Spent(limit, time.perf_counter() - begun)

    def journaled(
        self, work: Callable[[Journal, OnCandidate, int | None], None], limit: int | None
    ) -> tuple[list[Step], Spent]:
        """Run a search, and stop it when it has scored so many tokens."""
        spent, stamps, begun = 0, list[float](), time.perf_counter()

        def count(candidate: Candidate) -> None:
            nonlocal spent
            spent += candidate.tokens
            stamps.append(time.perf_counter() - begun)
            if limit is not None and spent >= limit:
                raise EnoughError

        with Journal(Path(tempfile.mkdtemp(dir=self.directory)) / "journal.db") as journal:
            with suppress(EnoughError):
                work(journal, count, limit)
            finished = {candidate.digest for candidate in journal.finished()}
            candidates = list(journal.candidates())[: len(stamps)]
            for repaired in journal.repairs().values():
                candidates.append(repaired)
                stamps.append(stamps[-1] + repaired.seconds)
        totals = np.cumsum([candidate.tokens for candidate in candidates]).tolist()
        steps = [
            Step(candidate.parsed, candidate.loss, total, stamp)
            for candidate, total, stamp in zip(candidates, totals, stamps, strict=True)
            if candidate.digest in finished
            and candidate.loss is not None
            and (limit is None or total <= limit)
        ]
        return improvements(steps), Spent(totals[-1], stamps[-1])

    def smaller_spaces(self) -> Iterator[Space]:
        """In the order of ABLATION."""
        space = self.plans.space
        yield replace(space, models=space.models[:1], methods=())
        yield replace(space, methods=())
        yield MergeOnly(**{one.name: getattr(space, one.name) for one in fields(space)})


def parts_of(session: Session) -> tuple[Evaluator, Evaluator]:
    """What is held out: its texts, and its items, which take longer."""
    assert session.held_out is not None
    composer, passes = session.held_out.composer, session.held_out.passes
    made = []
    for of_items in (False, True):
        objectives = [o for o in passes.objectives if (o.name != TEXTS) == of_items]
        rungs = [[batch for batch in rung if bool(batch.packs) == of_items] for rung in passes.rungs]
        made.append(Evaluator(composer, Passes(objectives, rungs)))
    return made[0], made[1]


def improvements(steps: Iterable[Step]) -> list[Step]:
    """Those that are better than all before."""
    made: list[Step] = []
    for step in steps:
        if not made or step.loss < made[-1].loss:
            made.append(step)
    return made


def execute(job: Job) -> tuple[str, dict[str, Any]]:
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        return job.key, Bench(job, Path(directory)).run()


def configuration(family: Path) -> dict[str, Any]:
    """The demo's, of a family in a directory that is laid out as the demo's, and its tasks."""
    made: dict[str, Any] = yaml.safe_load((DEMO / "search.yml").read_text())
    made["family"] = {
        "base": str(family / "family" / "base"),
        "variants": {name: str(family / "family" / name) for name in made["family"]["variants"]},
    }
    for section in ("objectives", "held_out"):
        for objective in made[section]:
            objective["data"] = {name: str(family / file) for name, file in objective["data"].items()}
    tasks = {"kind": "task", "tasks": list(TASKS), "include_path": str(DEMO / "tasks"), "split": "test"}
    made["held_out"] += [{**tasks, "metric": metric, "limit": 100} for metric in TASK_METRICS]
    return made


def members(config: Mapping[str, Any]) -> dict[str, Any]:
    """The whole models on what is held out."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "search.yml"
        file.write_text(yaml.safe_dump({**config, "target": {"remove": 1}}))
        plans = prepare(SearchConfig.load(file))
        device = pick_device("auto")
        session = start(plans, device)
        assert session.held_out is not None
        dtype = compute_dtype(device, str(plans.space.out_dtype))
        measured = measure_members(session.held_out, plans.family, device, dtype)
        scored = {name: session.held_out.passes.scores(one) for name, one in measured.items()}
    return {name: {"held_out": means(scores), "tasks": on_tasks(scores)} for name, scores in scored.items()}


def means(scores: Scores) -> dict[str, float]:
    """Held-out loss of each domain and of all tokens, nats per token."""
    by_set = scores[TEXTS]
    return {n: s.mean for n, s in by_set.items()} | {"mean": Score.total(list(by_set.values())).mean}


def on_tasks(scores: Scores) -> dict[str, dict[str, float]]:
    """Of each task: accuracy, and margin in nats."""
    return {task: {name: scores[name][task].natural for name in TASK_METRICS} for task in scores["acc"]}


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Where the results are, and go.")],
    sizes: Annotated[list[int] | None, typer.Option(help="Layers that stay.")] = None,
    seeds: int = 5,
    jobs: int = 2,
    plots: Annotated[Path | None, typer.Option(help="A directory for pictures.")] = None,
    family: Annotated[Path, typer.Option(help="Laid out as recipes/demo.")] = DEMO,
    train: Annotated[Path | None, typer.Option(help="Texts to train a larger family on.")] = None,
) -> None:
    if train is not None and not (family / "training.json").exists():
        train_family(train, family, device=str(pick_device("auto")), **LARGER)
    depth = json.loads((family / "family" / "base" / "config.json").read_text())["num_hidden_layers"]
    sizes = sizes or [round(share * depth) for share in SHARES]
    config = configuration(family.resolve())
    results: dict[str, Any] = json.loads(json_file.read_text()) if json_file.exists() else {}
    text = yaml.safe_dump(config)
    wanted = [
        Job(text, layers, seed, layers == round(ABLATED * depth)) for seed in range(seeds) for layers in sizes
    ]
    quiet_libraries()
    if "members" not in results:
        results["members"] = members(config)
    missing = [job for job in wanted if job.key not in results]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(execute, job) for job in missing]):
            key, made = done.result()
            results[key] = made
            json_file.write_text(json.dumps(results, indent=1))
            print(key, {n: round(one["held_out"]["mean"], 4) for n, one in made.items()}, flush=True)
    report(results, sorted({job.layers for job in wanted}, reverse=True), seeds, plots)


if __name__ == "__main__":
    typer.run(main)
