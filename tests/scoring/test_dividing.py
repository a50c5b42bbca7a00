from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.composing.prefixes import trie_order
from gptailor_merge.scoring.dividing import cost, divide

PATHS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=9)


@given(PATHS, st.integers(1, 5))
def test_every_path_is_in_one_part_in_the_order_of_the_trie(paths: list[str], parts: int) -> None:
    divided = divide(paths, parts)
    assert len(divided) <= parts
    assert all(divided)
    assert list(itertools.chain(*divided)) == trie_order(paths)


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=7), st.integers(1, 3))
def test_no_other_division_has_a_smaller_largest_part(paths: list[str], parts: int) -> None:
    order = trie_order(paths)
    largest = max(cost([paths[p] for p in part]) for part in divide(paths, parts))
    for cuts in itertools.combinations_with_replacement(range(len(paths) + 1), parts - 1):
        runs = [order[a:b] for a, b in itertools.pairwise([0, *cuts, len(paths)])]
        assert largest <= max(cost([paths[p] for p in run]) for run in runs)


def test_shared_layers_are_counted_once() -> None:
    assert cost(["aaaa", "aaab", "aabb"]) == 4 + 1 + 2 + 3
    assert divide(["aaaa", "bbbb", "aaab", "bbba"], 2) == [[0, 2], [3, 1]]
