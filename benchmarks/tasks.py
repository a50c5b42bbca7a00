"""Candidates per second on lm-eval's tasks: a generation of ours against lm-eval for each candidate.

    python benchmarks/tasks.py [--candidates N] [--items N] [--threads N] [--json FILE]

Two objectives on the built-in family: the true continuation among four, and minimal pairs. The candidates
are different children of one parent, as at the start of a search. All arms compose them in memory, with
banks of their own, and score them on the same items, side by side in one run:

    simple_evaluate   lm_eval.simple_evaluate for each candidate, as mergekit-evolve calls it on a model in
                      memory: one task manager, and lm-eval's own batch size, 1
    tuned             the same with the batch size that is fastest here
    loglikelihood     requests are built once; for each candidate lm-eval's language model answers them, in
                      batches of the fastest size
    alone             ours, one candidate after the other
    ours              a generation scored together: what candidates share is computed once
    racing            the same in rungs, and candidates that cannot have the best choice_loss leave early

Nothing is printed unless all arms give each candidate the same accuracy on every task, to the last digit.
Beside the time that passed stands that of the processor, which says more on a busy machine.
"""

from __future__ import annotations

import io
import json
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from evaluator import DEMO, generations
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from gptailor_merge.calibration.batches import RUNGS, layout
from gptailor_merge.cli.printing import quiet_libraries
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.config import SearchConfig
from gptailor_merge.models.loading import load_model, load_tokenizer
from gptailor_merge.objectives.tasks.harness import encoder, task_manager
from gptailor_merge.objectives.tasks.likelihood import TaskLikelihood, likelihood_objective, takes_trees
from gptailor_merge.objectives.tasks.metric import CHOICE_LOSS
from gptailor_merge.objectives.tasks.task_items import TaskItems, TaskSettings, load_items
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.runs.preparation import Preparation, prepare
from gptailor_merge.scoring.evaluator import Evaluator, Outcome
from gptailor_merge.scoring.passes import Passes, predictions_alone
from gptailor_merge.scoring.racing import Race

TASKS = DEMO.parent / "tasks"
QUESTIONS = {"four options": "gptailor_domains", "minimal pairs": "gptailor_blimp"}
SPLIT = "test"
"""The one that simple_evaluate scores."""
METRIC = "acc"
BATCH_SIZES = (4, 8, 16, 32, 64, 128)
CPU = torch.device("cpu")

Accuracies = Mapping[str, float]
"""Of each task."""


@dataclass(frozen=True)
class Setup:
    """What all arms share.

    Attributes:
        items: of each task.
        passes: all items at once.
        raced: the same items in rungs.
    """

    prepared: Preparation
    name: str
    items: tuple[TaskItems, ...]
    passes: Passes
    raced: Passes
    tokenizer: PreTrainedTokenizerBase

    def composer(self) -> Composer:
        """A composer with a bank of its own: no arm profits from what another has merged."""
        space = self.prepared.space
        precision = Precision.of(space.dtype, space.out_dtype, torch.float32)
        bank = Bank(self.prepared.family, precision, device=CPU)
        bank.preload()
        return Composer(bank)

    @property
    def requests(self) -> list[Any]:
        """lm-eval's, of all items."""
        return [one for made in self.items for some in made.instances for one in some]

    @property
    def asked_tokens(self) -> int:
        """Tokens that go through a model where each request is a text of its own."""
        flat = (one for made in self.items for some in made.requests for parts in some for one in parts)
        return sum(len(request.ids) - 1 for request in flat)


def set_up(prepared: Preparation, name: str, count: int, tokens: int | None) -> Setup:
    directory = prepared.family.base.directory
    tokenizer = load_tokenizer(directory)
    settings = TaskSettings((name,), TASKS, SPLIT, limit=count)
    items = tuple(load_items(settings, encoder(directory, tokenizer)))
    base = load_model(directory, torch.float32, CPU)
    trees = takes_trees(items, lambda batch: predictions_alone(base, batch), CPU)
    made = [likelihood_objective(items, metric, trees=trees) for metric in (METRIC, CHOICE_LOSS)]

    def passes(objectives: Sequence[TaskLikelihood], shares: Sequence[float]) -> Passes:
        rungs = layout(made[0].sets, tokens or prepared.config.batch_tokens, device=CPU, rungs=shares)
        return Passes(objectives, rungs, shares)

    return Setup(prepared, name, items, passes(made[:1], (1.0,)), passes(made, RUNGS), tokenizer)


def by_lm_eval(setup: Setup, manager: Any, model: Any, batch_size: int) -> Accuracies:
    """Everything anew, as lm-eval is called."""
    with redirect_stderr(io.StringIO()):  # its progress bars
        results = simple_evaluate(
            HFLM(pretrained=model, tokenizer=setup.tokenizer, batch_size=batch_size),
            tasks=[setup.name],
            samples={made.name: sorted(made.ids) for made in setup.items},
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=0,
        )
    return {made.name: results["results"][made.name][f"{METRIC},none"] for made in setup.items}


def by_likelihoods(setup: Setup, model: Any, batch_size: int) -> Accuracies:
    """Requests and what belongs to them are at hand."""
    lm = HFLM(pretrained=model, tokenizer=setup.tokenizer, batch_size=batch_size)
    with redirect_stderr(io.StringIO()):
        answers = iter(lm.loglikelihood(setup.requests, disable_tqdm=True))
    found = {}
    for made in setup.items:
        values = [
            made.task.process_results(some[0].doc, [next(answers) for _ in some])[METRIC]
            for some in made.instances
        ]
        found[made.name] = made.task.aggregation()[METRIC](values)
    return found


def of_outcomes(outcomes: Sequence[Outcome]) -> list[Accuracies | None]:
    """None of a candidate that was dropped."""
    for outcome in outcomes:
        if outcome.cause is not None:
            raise SystemExit(f"a candidate failed: {outcome.cause}")
    return [
        {name: score.natural for name, score in o.scores[METRIC].items()} if o.estimate is None else None
        for o in outcomes
    ]


def fastest(work: Callable[[int], object]) -> int:
    """The batch size with which work takes the least time of the processor, after a warm-up."""
    work(BATCH_SIZES[0])
    return min(BATCH_SIZES, key=lambda size: timed(lambda: work(size))[1])


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds that pass, and of the processor in this process and those that it starts; what comes of it."""
    begun, used = time.perf_counter(), processor_seconds()
    made = work()
    return time.perf_counter() - begun, processor_seconds() - used, made


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(setup: Setup, plans: Sequence[Plan], theirs: int, repeats: int) -> dict[str, Any]:
    """All arms, one after the other and that several times; the fastest counts.

    Args:
        theirs: so many of the candidates are scored by lm-eval.
    """
    manager = task_manager((setup.name,), TASKS)
    model = setup.composer().compose(plans[0])
    sizes = {
        "simple_evaluate": 1,
        "tuned": fastest(lambda size: by_lm_eval(setup, manager, model, size)),
        "loglikelihood": fastest(lambda size: by_likelihoods(setup, model, size)),
    }
    Evaluator(setup.composer(), setup.passes).score(plans[:1])  # ours is warm, too
    arms: dict[str, dict[str, Any]] = {}
    accuracies: dict[str, list[Accuracies | None]] = {}

    def arm(name: str, of: Sequence[Plan], work: Callable[[], list[Accuracies | None]]) -> None:
        seconds, used, accuracies[name] = timed(work)
        best = arms.setdefault(name, {"seconds": seconds, "processor_seconds": used})
        best["seconds"] = min(best["seconds"], seconds)
        best["processor_seconds"] = min(best["processor_seconds"], used)
        best["candidates_per_second"] = len(of) / best["seconds"]
        best["processor_ms_per_candidate"] = 1e3 * best["processor_seconds"] / len(of)

    few = plans[:theirs]
    for _ in range(repeats):
        for name, score in (
            ("simple_evaluate", lambda model, size: by_lm_eval(setup, manager, model, size)),
            ("tuned", lambda model, size: by_lm_eval(setup, manager, model, size)),
            ("loglikelihood", lambda model, size: by_likelihoods(setup, model, size)),
        ):
            composer = setup.composer()
            arm(name, few, lambda: [score(composer.compose(plan), sizes[name]) for plan in few])
        evaluator = Evaluator(setup.composer(), setup.passes)
        arm("alone", plans, lambda: of_outcomes([evaluator.score([plan])[0] for plan in plans]))
        for name, passes, race in (
            ("ours", setup.passes, None),
            ("racing", setup.raced, Race(1, {CHOICE_LOSS: 1.0})),
        ):
            evaluator = Evaluator(setup.composer(), passes)
            arm(name, plans, lambda: of_outcomes(evaluator.score(plans, race)))
            arms[name]["layer_tokens"] = evaluator.layer_tokens / len(plans)
            total = sum(evaluator.seconds.values())
            arms[name]["split"] = {part: spent / total for part, spent in evaluator.seconds.items() if spent}
    check_equal(accuracies)
    for name in sizes:
        arms[name]["batch_size"] = sizes[name]
        arms[name]["layer_tokens"] = setup.asked_tokens * len(plans[0].slots)
    arms["alone"]["layer_tokens"] = setup.passes.tokens * len(plans[0].slots)
    return {
        "tasks": {made.name: len(made.ids) for made in setup.items},
        "asked_tokens": setup.asked_tokens,
        "row_tokens": setup.passes.tokens,
        "places": sum(len(row.places) for batch in setup.passes.batches for row in batch.rows),
        "arms": arms,
        "ratios": {
            f"ours : {name}": {
                "by the clock": arms["ours"]["candidates_per_second"] / values["candidates_per_second"],
                "by the processor": values["processor_ms_per_candidate"]
                / arms["ours"]["processor_ms_per_candidate"],
            }
            for name, values in arms.items()
            if name != "ours"
        },
        "dropped": sum(found is None for found in accuracies["racing"]),
    }


def check_equal(accuracies: Mapping[str, Sequence[Accuracies | None]]) -> None:
    for name, found in accuracies.items():
        for number, (one, ours) in enumerate(zip(found, accuracies["ours"], strict=False)):
            if one is not None and one != ours:
                raise SystemExit(f"candidate {number}: {name} gives {one}, ours {ours}")


def show(question: str, result: Mapping[str, Any]) -> None:
    print(
        f"\n{question}: {result['tasks']}\n  {result['asked_tokens']} tokens one request at a time, "
        f"{result['row_tokens']} in our rows, heads at {result['places']} of them"
    )
    for name, values in result["arms"].items():
        more = "".join(f"  {part} {share:.1%}" for part, share in values.get("split", {}).items())
        more += f"  batches of {values['batch_size']}" if "batch_size" in values else ""
        print(
            f"  {name:16} {values['candidates_per_second']:8.3f} candidates/s"
            f"  {values['processor_ms_per_candidate']:7.0f} ms of processor each"
            f"  {values['layer_tokens'] / 1e3:5.0f}k layer-tokens each{more}"
        )
    for name, ratios in result["ratios"].items():
        print(f"  {name:24}" + "  ".join(f"{how} {ratio:6.2f}" for how, ratio in ratios.items()))
    print(f"  racing dropped {result['dropped']}")


def main(
    candidates: Annotated[int, typer.Option(min=2, help="in a generation")] = 32,
    items: Annotated[int, typer.Option(min=8, help="of each task; recipes/demo/tasks.yml has 50")] = 50,
    theirs: Annotated[int, typer.Option(min=1, help="candidates that lm-eval's arms score")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="of every arm")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="of PyTorch, in all arms")] = 1,
    batch_tokens: Annotated[int | None, typer.Option(help="of ours; default as in a search")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the figures go")] = None,
) -> None:
    torch.set_num_threads(threads)
    quiet_libraries()
    prepared = prepare(SearchConfig.load(DEMO))
    plans = generations(prepared.space, candidates)["first"]
    name = platform.processor() or "cpu"
    report: dict[str, Any] = {"machine": name, "threads": threads, "candidates": candidates, "items": items}
    for question, task in QUESTIONS.items():
        setup = set_up(prepared, task, items, batch_tokens)
        report[question] = measure(setup, plans, theirs, repeats)
        show(question, report[question])
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
