"""The parts of gpu.py that measure the engine: its speed, its host bank, a search, and its equality."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from engine_arms import Comparison, matmul_rate, metered
from engine_setup import generations, random_family, scratch
from gpu_parts import Note, Part, Subject

from gptailor_merge import SearchConfig, Session, open_session
from gptailor_merge.api.engine import Composer, Evaluator, Race, compute_dtype, loss, register

SHARE_KEPT = 22 / 30
TOKENS = 16_384
CANDIDATES = {"tiny": 4, "1b": 16, "7b": 8, "7b-8": 8}
ARM_SECONDS = 20.0
BATCHES: tuple[int | str, ...] = (4096, "auto")


def engine(shape: str) -> Callable[[Subject, Note], None]:
    """Returns a part that runs all arms on one generation of a random family."""

    def run(subject: Subject, note: Note) -> None:
        name = "tiny" if subject.tiny else shape
        device, begun = torch.device(subject.device), time.perf_counter()
        register()
        with scratch(name) as directory:
            setup = random_family(name, directory, device)
            compute = setup.precision.compute or torch.float32
            rate = matmul_rate(device, compute)
            facts = {"flops_per_second": rate, "dtype": str(compute), "tokens": setup.passes.tokens}
            note({"setting up": {"seconds": time.perf_counter() - begun, **facts}})
            plans = generations(setup.space, CANDIDATES[name])["first"]

            def hand_over(known: dict[str, Any]) -> None:
                note({"generation": known})

            Comparison(setup, plans, 1, 1, rate, ARM_SECONDS, hand_over).run()

    return run


def host_bank(subject: Subject, note: Note) -> None:
    """Scores one generation with the family on the device, and with the family in the host's memory."""
    name, device = "tiny" if subject.tiny else "7b-8", torch.device(subject.device)
    losses: dict[str, list[float]] = {}
    with scratch(name) as directory:
        setup = random_family(name, directory, device)
        plans = generations(setup.space, CANDIDATES[name])["first"]
        places: dict[str, Callable[[], Composer]] = {"device": setup.composer, "host": setup.on_host}
        for place, make in places.items():
            evaluator = Evaluator(make(), setup.passes)
            evaluator.score(plans[:1])  # the first kernels are found and loaded
            with metered(device) as meter:
                outcomes = evaluator.score(plans)
            losses[place] = [loss(outcome.scores, setup.weights) for outcome in outcomes]
            speed = {"seconds": meter.seconds, "candidates_per_second": len(plans) / meter.seconds}
            note({place: {**speed, "peak_bytes": meter.peak_bytes, "split": evaluator.seconds}})
            setup.loaded.clear()
    note({"losses": {"equal": losses["device"] == losses["host"], "apart": apart(*losses.values())}})


def search_135m(subject: Subject, note: Note) -> None:
    """Scores a generation of the real family at several batch sizes, and searches it."""
    for batch_tokens in BATCHES:
        session = opened(subject, batch_tokens)
        plans = generations(session.space, 4 if subject.tiny else 32)["first"]
        evaluator = session.evaluator
        for arm, race in {"whole": None, "racing": Race(1, session.weights)}.items():
            evaluator.score(plans[:1])
            with metered(session.device) as meter:
                outcomes = evaluator.score(plans, race)
            tokens = sum(outcome.tokens for outcome in outcomes)
            note(
                {
                    f"{arm}, batch_tokens {batch_tokens}": {
                        "seconds": meter.seconds,
                        "candidates_per_minute": 60 * len(plans) / meter.seconds,
                        "tokens_per_second": tokens / meter.seconds,
                        "peak_bytes": meter.peak_bytes,
                        "batch": max(batch.ids.numel() for batch in evaluator.passes.batches),
                    }
                }
            )
    begun = time.perf_counter()
    trace = session.search(budget=8 if subject.tiny else 240)
    seconds = time.perf_counter() - begun
    note(
        {
            "search": {
                "seconds": seconds,
                "candidates": len(trace.candidates),
                "candidates_per_minute": 60 * len(trace.candidates) / seconds,
                "tokens_per_second": trace.tokens[-1] / seconds,
            }
        }
    )


def equal(subject: Subject, note: Note) -> None:
    """Tells how far the scores of a generation are apart when they are computed in other ways."""
    session = opened(subject, 4096)
    plans = generations(session.space, 4 if subject.tiny else 8)["first"]
    shared = session.losses(plans)

    def streamed() -> Sequence[float]:
        on_host = open_session(session.config, device=subject.device, bank="host")
        return on_host.losses(plans)

    def raced() -> Sequence[float]:
        outcomes = session.score(plans, Race(len(plans), session.weights))
        return [session.loss(outcome.scores) for outcome in outcomes]

    def without_graphs() -> Sequence[float]:
        evaluator = Evaluator(session.composer, session.evaluator.passes, by_graphs=False)
        return [session.loss(outcome.scores) for outcome in evaluator.score(plans)]

    ways: dict[str, Callable[[], Sequence[float]]] = {
        "without graphs": without_graphs,
        "again": lambda: session.losses(plans),
        "one by one": lambda: [session.losses([plan])[0] for plan in plans],
        "in another order": lambda: session.losses(plans[::-1])[::-1],
        "raced": raced,
        "streamed": streamed,
        "other batches": lambda: opened(subject, 2048 if not subject.tiny else 128).losses(plans),
        "batch_tokens auto": lambda: opened(subject, "auto").losses(plans),
    }
    dtype = str(compute_dtype(session.device, str(session.space.out_dtype)))
    for name, way in ways.items():
        losses = way()
        note({name: {"equal": list(losses) == shared, "apart": apart(shared, losses), "dtype": dtype}})


def apart(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the largest relative difference."""
    return max(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True))


def opened(subject: Subject, batch_tokens: int | str) -> Session:
    """Opens the subject's family with a number of tokens in a batch."""
    layers = round(SHARE_KEPT * subject.depth)
    document = {**subject.config, "target": {"layers": layers}, "batch_tokens": batch_tokens}
    document["held_out"] = []
    if not subject.tiny:
        document["objectives"] = [{**document["objectives"][0], "tokens": TOKENS}]
    return open_session(SearchConfig.model_validate(document), device=subject.device)


def show(results: dict[str, Any], subject: Subject) -> None:
    """Prints the figures."""
    print(json.dumps(results, indent=1))


PARTS = (
    Part("engine-1b", 90, engine("1b"), show, only_if_named=True),
    Part("engine-7b", 90, engine("7b"), show, only_if_named=True),
    Part("host-bank", 90, host_bank, show, only_if_named=True),
    Part("search-135m", 90, search_135m, show, only_if_named=True),
    Part("equal", 90, equal, show, only_if_named=True),
)
