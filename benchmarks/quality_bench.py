"""Measures what methods come to: as it is, repaired, and repaired and tuned, all treated alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from quality_methods import ARMS, EQUAL_SECONDS, NOT_TUNED, OURS, PLAIN, Methods, Result, Spent
from treatment import repaired, tuned

from gptailor_merge import Plan, Recipe, SearchConfig, Session, open_session, plan
from gptailor_merge.api.engine import Evaluator, Passes, Scores, means_of

TEXTS, TASK_METRICS = "perplexity", ("acc", "margin")

OnArm = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """One size and one seed.

    Attributes:
        config: the search config, as YAML.
        arms: the methods that are run besides our search.
        tuned: those whose recipe is repaired and tuned; that of others is repaired only.
        tiny: the merge rivals and the best member have one model to choose from.
    """

    config: str
    layers: int
    seed: int
    arms: tuple[str, ...] = ARMS
    tuned: tuple[str, ...] = (PLAIN, NOT_TUNED, *ARMS)
    tiny: bool = False

    @property
    def key(self) -> str:
        return f"{self.layers} layers, seed {self.seed}"


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
    """Runs all methods of a size and a seed, on the same session.

    Attributes:
        refined: name of a method -> its recipe, repaired and tuned as far as that was done.
    """

    def __init__(self, job: Job, directory: Path, device: str = "auto") -> None:
        self.job, self.directory = job, directory
        sized = {**yaml.safe_load(job.config), "target": {"layers": job.layers}}
        document = drawn(sized, job.seed, directory)
        (directory / "search.yml").write_text(yaml.safe_dump(document))
        self.config = SearchConfig.load(directory / "search.yml")
        self.session: Session = open_session(self.config, device=device)
        self.texts, self.items = parts_of(self.session)
        self.calibration: dict[str, Any] = document["objectives"][0]
        self.methods = Methods(self.session, job.seed, tiny=job.tiny)
        self.known: dict[str, dict[str, float]] = {}
        self.refined: dict[str, Recipe] = {}

    def run(self, on_arm: OnArm = lambda name, result: None) -> dict[str, dict[str, Any]]:
        """Runs every method, ours first: its tokens and seconds are the others' limits.

        Args:
            on_arm: is told of each result as soon as it is known.
        """
        results: dict[str, dict[str, Any]] = {}
        for arm in dict.fromkeys((OURS, *self.job.arms)):
            for name, result in self.methods.results(arm):
                results[name] = self.measured(name, result)
                on_arm(name, results[name])
        return results

    def measured(self, name: str, result: Result) -> dict[str, Any]:
        """Measures what a method came to: held out as it is, step by step, repaired, and tuned after that."""
        losses = self.losses([step.plan for step in result.steps])
        last = result.steps[-1]
        figures: dict[str, Any] = {
            "searched": last.loss,
            "tokens": result.spent.tokens,
            "seconds": result.spent.seconds,
            "held_out": losses[-1],
            "tasks": self.tasks(last.plan),
            "steps": [
                {"tokens": s.tokens, "seconds": s.seconds, "searched": s.loss, "mean": loss["mean"]}
                for s, loss in zip(result.steps, losses, strict=True)
            ],
            "kept": list(last.plan.kept),
            "recipe": last.recipe.to_yaml(),
        }
        recipe, spent = last.recipe, result.spent
        if not result.repaired and not last.plan.repaired:
            recipe, cost = repaired(self.session, recipe, self.directory)
            spent += cost
        if not result.tuned:
            figures["repaired"] = self._refined(recipe, spent)
        if name.removesuffix(EQUAL_SECONDS) in self.job.tuned:
            if not result.tuned:
                recipe, cost = tuned(self.session, recipe, self.directory)
                spent += cost
            figures["tuned"] = self._refined(recipe, spent)
        self.refined[name] = recipe
        return figures

    def _refined(self, recipe: Recipe, spent: Spent) -> dict[str, Any]:
        """Returns held-out losses, and all that led to them, the search included."""
        return {**self.losses([plan(recipe)])[0], "tokens": spent.tokens, "seconds": spent.seconds}

    def losses(self, plans: Sequence[Plan]) -> list[dict[str, float]]:
        """Returns held-out losses of each domain, and the mean of those that are calibrated on, in nats."""
        unknown = {plan.digest: plan for plan in plans if plan.digest not in self.known}
        for digest, outcome in zip(unknown, self.texts.score(list(unknown.values())), strict=True):
            self.known[digest] = domain_losses(outcome.scores, self.calibration["data"])
        return [self.known[plan.digest] for plan in plans]

    def tasks(self, plan: Plan) -> dict[str, dict[str, float]]:
        """Returns accuracy and margin on each task."""
        if self.items is None:
            return {}
        (outcome,) = self.items.score([plan])
        return on_tasks(outcome.scores)


def parts_of(session: Session) -> tuple[Evaluator, Evaluator | None]:
    """Returns evaluators for what is held out: for its texts, and for its items, which take longer."""
    passes = session.held_out_evaluator.passes
    evaluators = []
    for of_items in (False, True):
        objectives = [o for o in passes.objectives if (o.name != TEXTS) == of_items]
        rungs = [[batch for batch in rung if bool(batch.packs) == of_items] for rung in passes.rungs]
        evaluators.append(Evaluator(session.composer, Passes(objectives, rungs)) if objectives else None)
    texts, items = evaluators
    assert texts is not None
    return texts, items


def domain_losses(scores: Scores, calibrated: Mapping[str, Any]) -> dict[str, float]:
    """Returns the losses on all domains, and as "mean" that of the domains that are calibrated on."""
    by_set = scores[TEXTS]
    inside = {name: score for name, score in by_set.items() if name in calibrated}
    outside = {name: score.mean for name, score in by_set.items() if name not in calibrated}
    losses = means_of(inside)
    mean = losses.pop("mean")
    return {**losses, "mean": mean, **outside}


def on_tasks(scores: Scores) -> dict[str, dict[str, float]]:
    """Returns for each task its accuracy, and its margin in nats."""
    return {
        task: {name: scores[name][task].natural for name in TASK_METRICS} for task in scores.get("acc", {})
    }
