"""Divides a generation among workers: plans with common prefixes stay together, and loads are even."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptailor_merge.composing.prefixes import Path, common, trie_order

HEAD = 1
"""The cost of a plan's head and objectives, in layers."""


def divide(paths: Sequence[Path], parts: int) -> list[list[int]]:
    """Returns the positions of the paths in at most `parts` parts, whose largest cost is the least possible.

    The cost of a part is the number of layers that its paths do not share with the path before, and one
    more for the head of each. A part is a run of the trie order, as an evaluator goes through it.

    >>> divide(["aab", "aac", "bbb", "bbc"], 2)
    [[0, 1], [2, 3]]
    """
    order = trie_order(paths)
    ordered = [paths[position] for position in order]
    low = max((len(path) + HEAD for path in ordered), default=0)
    high = max(low, sum(len(path) + HEAD for path in ordered))
    while low < high:
        middle = (low + high) // 2
        if len(list(_runs(ordered, middle))) <= parts:
            high = middle
        else:
            low = middle + 1
    return [[order[at] for at in run] for run in _runs(ordered, high)]


def cost(paths: Sequence[Path]) -> int:
    """Returns what the paths cost together, in layers.

    >>> cost(["aab", "aac"])
    6
    """
    ordered = [paths[position] for position in trie_order(paths)]
    return sum(_costs(ordered))


def _costs(ordered: Sequence[Path]) -> Iterator[int]:
    for at, path in enumerate(ordered):
        shared = common(ordered[at - 1], path) if at else 0
        yield len(path) - shared + HEAD


def _runs(ordered: Sequence[Path], most: int) -> Iterator[list[int]]:
    """Yields runs of positions that cost no more than `most`, each as long as it can be."""
    run: list[int] = []
    spent = 0
    for at, further in enumerate(_costs(ordered)):
        if run and spent + further > most:
            yield run
            run, spent = [], 0
        spent += further if run else len(ordered[at]) + HEAD
        run.append(at)
    if run:
        yield run
