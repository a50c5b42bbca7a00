"""Reads what the items of lm-eval's tasks ask, and chooses which are taken in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from gptailor_merge.objectives.kinds import Purpose

FEW_SHOT_SEED = 1234
"""lm-eval's default."""


SEARCHED_SHARE = 0.5
"""The share of a divided split that the search gets; the rest is held out."""


def content(task: Any, document: Any) -> list[Any]:
    """Returns what an item asks, what is right, and the options of a multiple choice."""
    has_choices = task.OUTPUT_TYPE == "multiple_choice"
    choices = [task.doc_to_choice(document)] if has_choices else []
    return [task.doc_to_text(document), task.doc_to_target(document), *choices]


def text_of(task: Any, document: Any) -> str:
    """Returns the text of an item, the same for the same question, wherever its answer stands."""
    if task.OUTPUT_TYPE != "multiple_choice":
        parts = content(task, document)
    else:
        question, answer, choices = content(task, document)
        parts = [answer if task.multiple_input else question, *sorted(map(str, choices))]
    return " ".join(" ".join(map(str, parts)).split())


def stratum_of(task: Any, document: Any) -> Any:
    """Returns the place of an item's right answer; items that agree in it are spread evenly."""
    return right_options(task, document) if task.OUTPUT_TYPE == "multiple_choice" else None


def right_options(task: Any, document: Any) -> tuple[int, ...]:
    """Returns which options of a multiple choice are right, as lm-eval reads it; none where it is hidden."""
    answer = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    places = [
        choices.index(option) if isinstance(option, str) and option in choices else option
        for option in (answer if isinstance(answer, (list, tuple)) else [answer])
    ]
    return tuple(int(place) for place in places if isinstance(place, int) and 0 <= place < len(choices))


def purpose_of(text: str) -> Purpose:
    """Returns which side of a divided split an item falls on, a matter of its text alone."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "searched" if share < SEARCHED_SHARE else "held_out"


def stratified(strata: Sequence[Any], seed: int) -> list[int]:
    """Returns a random order in which every beginning holds each stratum in about its share.

    Args:
        strata: of each item.

    Returns:
        Numbers of the items.
    """
    rng = np.random.RandomState(seed)
    members: dict[Any, list[int]] = {}
    for number in rng.permutation(len(strata)).tolist():
        members.setdefault(strata[number], []).append(number)
    # Each stratum is spread evenly over [0, 1], from a start of its own.
    starts = {stratum: rng.uniform() for stratum in sorted(members, key=str)}
    keyed = [
        ((rank + starts[stratum]) / len(numbers), number)
        for stratum, numbers in members.items()
        for rank, number in enumerate(numbers)
    ]
    return [number for _, number in sorted(keyed)]


def set_up(task: Any, split: str, documents: list[Any], few_shot: int | None) -> None:
    """Makes a task ask these items as lm-eval would, with their few-shot examples.

    Args:
        split: the one that the items come from.
        documents: the items.
        few_shot: examples before each item; None keeps the task's own number.
    """
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
    """Returns the split that lm-eval draws few-shot examples from; None where it is no split."""
    config, few_shot = task.config, task.fewshot_cfg
    if few_shot.split is not None or few_shot.samples is not None:
        return few_shot.split  # type: ignore[no-any-return]  # lm-eval has no types
    return config.training_split or config.validation_split or config.test_split  # type: ignore[no-any-return]


def render_once(task: Any) -> None:
    """Makes a task remember its rendered templates, which lm-eval renders anew for every score."""
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        setattr(task, name, partial(_remembered, getattr(task, name), {}))


def _remembered(render: Any, known: dict[int, tuple[Any, Any]], document: Any, *arguments: Any) -> Any:
    if arguments:
        return render(document, *arguments)
    if id(document) not in known:
        known[id(document)] = document, render(document)  # the document is held, so that its id stays its own
    return known[id(document)][1]
