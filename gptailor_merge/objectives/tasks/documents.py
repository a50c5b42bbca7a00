"""What an item of one of lm-eval's tasks is about, and which items are taken in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

FEW_SHOT_SEED = 1234
"""lm-eval's default."""


SEARCHED_SHARE = 0.5
"""Of a split that is both searched on and held out."""


Part = Literal["searched", "held_out"]


def content(task: Any, document: Any) -> list[Any]:
    """What is asked, and what is right."""
    has_choices = task.OUTPUT_TYPE == "multiple_choice"
    choices = [task.doc_to_choice(document)] if has_choices else []
    return [task.doc_to_text(document), task.doc_to_target(document), *choices]


def text_of(task: Any, document: Any) -> str:
    """What an item is about; equal for items that are the same question, whatever place its answer has."""
    if task.OUTPUT_TYPE != "multiple_choice":
        parts = content(task, document)
    else:
        question, answer, choices = content(task, document)
        parts = [answer if task.multiple_input else question, *sorted(map(str, choices))]
    return " ".join(" ".join(map(str, parts)).split())


def stratum_of(task: Any, document: Any) -> Any:
    """Items alike in this are spread evenly: the place of the right answer."""
    return right_options(task, document) if task.OUTPUT_TYPE == "multiple_choice" else None


def right_options(task: Any, document: Any) -> tuple[int, ...]:
    """Which options of a multiple-choice item are right, as lm-eval reads it; none where it is not said."""
    given = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    places = [
        choices.index(one) if isinstance(one, str) and one in choices else one
        for one in (given if isinstance(given, (list, tuple)) else [given])
    ]
    return tuple(int(place) for place in places if isinstance(place, int) and 0 <= place < len(choices))


def part_of(text: str) -> Part:
    """On which side of a divided split an item falls: a matter of its text alone."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "searched" if share < SEARCHED_SHARE else "held_out"


def stratified(strata: Sequence[Any], seed: int) -> list[int]:
    """A random order of which every beginning holds each stratum in about its share."""
    rng = np.random.RandomState(seed)
    members: dict[Any, list[int]] = {}
    for number in rng.permutation(len(strata)).tolist():
        members.setdefault(strata[number], []).append(number)
    # Each stratum is spread evenly over [0, 1], from a start of its own.
    starts = {stratum: rng.uniform() for stratum in sorted(members, key=str)}
    keyed = [
        ((rank + starts[stratum]) / len(some), number)
        for stratum, some in members.items()
        for rank, number in enumerate(some)
    ]
    return [number for _, number in sorted(keyed)]


def set_up(task: Any, split: str, documents: list[Any], few_shot: int | None) -> None:
    """Let a task put these items as lm-eval would, with their few-shot examples."""
    config = task.config
    if few_shot is not None and config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=few_shot)
    elif config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    # lm-eval keeps an item out of its own examples where these two settings are equal, whatever they are.
    keeps_out = task.fewshot_cfg.split == config.test_split
    if split != (config.test_split or config.validation_split):  # a split that lm-eval never scores
        keeps_out = _split_of_examples(task) == split
    task.fewshot_cfg.split = split if keeps_out else None
    task.set_config(key="test_split", value=split)
    task.has_test_docs, task.test_docs = (lambda: True), (lambda: documents)


def _split_of_examples(task: Any) -> str | None:
    """Where lm-eval draws few-shot examples from; None where it is no split."""
    config, own = task.config, task.fewshot_cfg
    if own.split is not None or own.samples is not None:
        return own.split  # type: ignore[no-any-return]
    return config.training_split or config.validation_split or config.test_split  # type: ignore[no-any-return]


def render_once(task: Any) -> None:
    """lm-eval renders an item's templates whenever it is scored; they do not change."""
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, partial(_remembered, getattr(task, name), {}))


def _remembered(render: Any, known: dict[int, tuple[Any, Any]], document: Any, *arguments: Any) -> Any:
    if arguments:
        return render(document, *arguments)
    if id(document) not in known:
        known[id(document)] = document, render(document)  # the document is held: its id stays its own
    return known[id(document)][1]
