"""Candidates per second on lm-eval's tasks: a generation of ours against lm-eval for each candidate.

    python benchmarks/tasks.py [--candidates N] [--items N] [--threads N] [--json FILE] [--tiny]

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
from typing import Annotated, Any

import torch
import typer
from common import DEMO, SEARCH, JsonFile, Tiny, read_config
from engine_setup import generations
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from gptailor_merge import Family, Plan, SearchConfig, Space, quiet_libraries, space_of
from gptailor_merge.api.engine import (
    CHOICE_LOSS,
    RUNGS,
    Bank,
    Composer,
    Evaluator,
    Outcome,
    Passes,
    Precision,
    Race,
    TaskItems,
    TaskLikelihood,
    TaskSettings,
    encoder,
    layout,
    likelihood_objective,
    load_items,
    load_model,
    load_tokenizer,
    predictions_alone,
    takes_trees,
    task_manager,
)

TASKS = DEMO / "tasks"
QUESTIONS = {"four options": "gptailor_domains", "minimal pairs": "gptailor_blimp"}
SPLIT = "test"
"""The split that simple_evaluate scores."""
METRIC = "acc"
BATCH_SIZES = (4, 8, 16, 32, 64, 128)
CPU = torch.device("cpu")

Accuracies = Mapping[str, float]
"""Task -> its accuracy."""


@dataclass(frozen=True)
class Setup:
    """The family and the items that all arms share.

    Attributes:
        name: the group of tasks.
        items: the items of each task.
        passes: all items at once.
        raced: the same items in rungs.
    """

    family: Family
    space: Space
    name: str
    items: tuple[TaskItems, ...]
    passes: Passes
    raced: Passes
    tokenizer: PreTrainedTokenizerBase

    def composer(self) -> Composer:
        """Makes a composer with a bank of its own: no arm profits from what another has merged."""
        precision = Precision.of(self.space.dtype, self.space.out_dtype, torch.float32)
        bank = Bank(self.family, precision, device=CPU)
        bank.preload()
        return Composer(bank)

    @property
    def requests(self) -> list[Any]:
        """Lists lm-eval's requests for all items."""
        return [request for task in self.items for requests in task.instances for request in requests]

    @property
    def asked_tokens(self) -> int:
        """Counts the tokens that go through a model where each request is a text of its own."""
        flat = (
            request for task in self.items for item in task.requests for parts in item for request in parts
        )
        return sum(len(request.ids) - 1 for request in flat)


def set_up(config: SearchConfig, name: str, count: int, tokens: int) -> Setup:
    """Loads the items of a group of tasks.

    Args:
        count: number of items of each task.
        tokens: size of our batches.
    """
    family = Family.load(config.family.base, config.family.variants)
    directory = family.base.directory
    tokenizer = load_tokenizer(directory)
    settings = TaskSettings((name,), TASKS, SPLIT, limit=count)
    items = tuple(load_items(settings, encoder(directory, tokenizer)))
    base = load_model(directory, torch.float32, CPU)
    trees = takes_trees(items, lambda batch: predictions_alone(base, batch), CPU)
    objectives = [likelihood_objective(items, metric, trees=trees) for metric in (METRIC, CHOICE_LOSS)]

    def passes(scored: Sequence[TaskLikelihood], shares: Sequence[float]) -> Passes:
        sets = objectives[0].sets
        return Passes(scored, layout(sets, tokens, device=CPU, rungs=shares), shares)

    raced = passes(objectives, RUNGS)
    return Setup(family, space_of(config), name, items, passes(objectives[:1], (1.0,)), raced, tokenizer)


def by_lm_eval(setup: Setup, manager: Any, model: Any, batch_size: int) -> Accuracies:
    """Scores a model as lm-eval is called, everything anew."""
    with redirect_stderr(io.StringIO()):  # its progress bars
        results = simple_evaluate(
            HFLM(pretrained=model, tokenizer=setup.tokenizer, batch_size=batch_size),
            tasks=[setup.name],
            samples={task.name: sorted(task.ids) for task in setup.items},
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=0,
        )
    return {task.name: results["results"][task.name][f"{METRIC},none"] for task in setup.items}


def by_likelihoods(setup: Setup, model: Any, batch_size: int) -> Accuracies:
    """Scores a model with requests that are at hand."""
    lm = HFLM(pretrained=model, tokenizer=setup.tokenizer, batch_size=batch_size)
    with redirect_stderr(io.StringIO()):
        answers = iter(lm.loglikelihood(setup.requests, disable_tqdm=True))
    accuracies = {}
    for items in setup.items:
        values = [
            items.task.process_results(requests[0].doc, [next(answers) for _ in requests])[METRIC]
            for requests in items.instances
        ]
        accuracies[items.name] = items.task.aggregation()[METRIC](values)
    return accuracies


def of_outcomes(outcomes: Sequence[Outcome]) -> list[Accuracies | None]:
    """Returns the accuracies of each candidate; None for one that was dropped."""
    for outcome in outcomes:
        if outcome.cause is not None:
            raise SystemExit(f"a candidate failed: {outcome.cause}")
    return [
        {name: score.natural for name, score in o.scores[METRIC].items()} if o.estimate is None else None
        for o in outcomes
    ]


def fastest(work: Callable[[int], object], batch_sizes: Sequence[int]) -> int:
    """Returns the batch size with which work takes the least time of the processor, after a warm-up."""
    if len(batch_sizes) == 1:
        return batch_sizes[0]
    work(batch_sizes[0])
    return min(batch_sizes, key=lambda size: timed(lambda: work(size))[1])


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Returns the seconds that pass, the processor's seconds here and in children, and the result."""
    begun, used = time.perf_counter(), processor_seconds()
    result = work()
    return time.perf_counter() - begun, processor_seconds() - used, result


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(
    setup: Setup, plans: Sequence[Plan], theirs: int, repeats: int, batch_sizes: Sequence[int]
) -> dict[str, Any]:
    """Runs all arms, one after the other and all of it several times; the fastest counts.

    Args:
        theirs: number of candidates that lm-eval's arms score.
        batch_sizes: sizes of lm-eval's batches that are tried.
    """
    manager = task_manager((setup.name,), TASKS)
    model = setup.composer().compose(plans[0])
    sizes = {
        "simple_evaluate": 1,
        "tuned": fastest(lambda size: by_lm_eval(setup, manager, model, size), batch_sizes),
        "loglikelihood": fastest(lambda size: by_likelihoods(setup, model, size), batch_sizes),
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
        scorers: dict[str, Callable[[Any, int], Accuracies]] = {
            "simple_evaluate": lambda model, size: by_lm_eval(setup, manager, model, size),
            "tuned": lambda model, size: by_lm_eval(setup, manager, model, size),
            "loglikelihood": lambda model, size: by_likelihoods(setup, model, size),
        }
        for name, score in scorers.items():
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
        "tasks": {task.name: len(task.ids) for task in setup.items},
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
        "dropped": sum(accuracy is None for accuracy in accuracies["racing"]),
    }


def check_equal(accuracies: Mapping[str, Sequence[Accuracies | None]]) -> None:
    """Ends the program where an arm gives a candidate another accuracy than ours."""
    for name, by_candidate in accuracies.items():
        for number, (theirs, ours) in enumerate(zip(by_candidate, accuracies["ours"], strict=False)):
            if theirs is not None and theirs != ours:
                raise SystemExit(f"candidate {number}: {name} gives {theirs}, ours {ours}")


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
    candidates: Annotated[int, typer.Option(min=2, help="Candidates in a generation.")] = 32,
    items: Annotated[int, typer.Option(min=2, help="Items of each task.")] = 50,
    theirs: Annotated[int, typer.Option(min=1, help="Candidates that lm-eval's arms score.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="How often every arm is run.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch, in all arms.")] = 1,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens in our batches; a search on a CPU takes the default.")
    ] = 4096,
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    if tiny:
        candidates, items, theirs, repeats = 3, 8, 1, 1
    torch.set_num_threads(threads)
    quiet_libraries()
    config = read_config(SEARCH)
    plans = generations(space_of(config), candidates)["first"]
    name = platform.processor() or "cpu"
    report: dict[str, Any] = {"machine": name, "threads": threads, "candidates": candidates, "items": items}
    for question, task in QUESTIONS.items():
        setup = set_up(config, task, items, batch_tokens)
        report[question] = measure(setup, plans, theirs, repeats, BATCH_SIZES[:1] if tiny else BATCH_SIZES)
        show(question, report[question])
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
