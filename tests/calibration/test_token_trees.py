"""Rows, trees and packs ask for just the tokens that were requested."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor_merge.calibration import batches as batching
from gptailor_merge.calibration import packing
from gptailor_merge.calibration.batches import RUNGS, Batch, layout
from gptailor_merge.calibration.packing import packed
from gptailor_merge.calibration.token_trees import LARGEST_TREE, ItemSet, Request, item_set
from gptailor_merge.objectives.protocols import Forward, Prediction, log_likelihood
from gptailor_merge.objectives.tasks.likelihood import takes_trees
from gptailor_merge.scoring.passes import predictions_alone
from tests.zoo import write_family

CPU = torch.device("cpu")
VOCABULARY = 4

Items = list[list[Request]]


@cache
def logits_after(text: tuple[int, ...]) -> torch.Tensor:
    """What the fake model predicts: anything, but another thing after every other text."""
    rng = random.Random(str(text))
    return torch.tensor([rng.random() for _ in range(VOCABULARY)])


def fake(batch: Batch) -> Iterator[Prediction]:
    """A model whose prediction depends on all that a token sees, in the order of the positions."""
    sequences, places = batch.places
    answers = []
    for sequence, place in zip(sequences.tolist(), places.tolist(), strict=True):
        ids = batch.ids[sequence].tolist()
        seen = list(range(place + 1))
        if batch.branches is not None:
            positions = batch.branches.positions[sequence].tolist()
            seen = batch.branches.visible[sequence, 0, place].nonzero()[:, 0].tolist()
            seen.sort(key=positions.__getitem__)
            assert [positions[at] for at in seen] == list(range(len(seen)))
            assert seen[-1] == place
        answers.append(logits_after(tuple(ids[at] for at in seen)))
    known = torch.stack(answers).log_softmax(-1)
    for segment, at, asked in batch.questions:
        yield Prediction(segment, asked, known, at)


def directly(request: Request) -> list[float]:
    """The log-likelihood of each token asked for, text by text."""
    first = len(request.ids) - request.scored
    after = [logits_after(request.ids[:at]) for at in range(first, len(request.ids))]
    return [
        float(logits.log_softmax(-1)[token]) for logits, token in zip(after, request.ids[first:], strict=True)
    ]


def likelihoods(
    sets: Sequence[ItemSet], rungs: Sequence[Sequence[Batch]], forward: Forward
) -> dict[str, list[float]]:
    """Set -> the log-likelihood of each token asked for, request by request."""
    answers: dict[str, list[float]] = {items.name: [] for items in sets}
    for rung in rungs:
        values: dict[str, list[float]] = {}
        rows: dict[str, list[int]] = {}
        for batch in rung:
            for segment in batch.segments:
                rows.setdefault(segment.digest, []).extend(segment.rows)
            for prediction in forward(batch):
                digest = prediction.segment.digest
                values.setdefault(digest, []).extend(log_likelihood(prediction).tolist())
        for items in sets:
            if items.digest in rows:
                of_rung = rows[items.digest]
                first, stop = items.items_of(min(of_rung), max(of_rung) + 1)
                places = items.asked(of_rung, first, stop)
                answers[items.name] += np.array(values[items.digest])[places].tolist()
    return answers


def shattered(batch: Batch, how: random.Random) -> Iterator[Batch]:
    """A batch in halves of halves, as where memory runs out."""
    if len(batch.ids) > 1 and how.random() < 0.7:
        for half in batch.halves():
            yield from shattered(half, how)
    else:
        yield batch


def rows_in(batch: Batch) -> list[tuple[str, int]]:
    """(set, row) of all that it asks for, after checking that segments and sequences say the same."""
    rows = [(segment.digest, row) for segment in batch.segments for row in segment.rows]
    assert sorted(rows) == sorted((m.digest, m.number) for pack in batch.packs for m in pack.members)
    return rows


@st.composite
def questions(draw: st.DrawFn) -> list[Request]:
    """An item: options behind a context that may be empty, and requests that have nothing to do with it."""
    tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5)
    context = [0, *draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=6))]
    requests = []
    for option in draw(st.lists(tokens, min_size=1, max_size=4)):
        before = draw(st.sampled_from([context, context, context, [0], [0, *option]]))
        requests.append(Request((*before, *option), draw(st.integers(1, len(option)))))
    return requests + draw(st.sampled_from([[], requests[:1]]))


@settings(deadline=None)
@given(
    st.lists(st.lists(questions(), min_size=1, max_size=9), min_size=1, max_size=3),
    st.sampled_from([(True,), (False,), (True, False)]),
    st.integers(1, 60),
    st.sampled_from([RUNGS, (1.0,)]),
    st.sampled_from([1, 8, 128]),
    st.sampled_from([4, 512]),
    st.sampled_from([0.0, 0.25]),
    st.randoms(use_true_random=False),
)
def test_trees_rows_and_single_requests_ask_for_the_same(
    tasks: list[Items],
    trees: tuple[bool, ...],
    batch_tokens: int,
    rungs: tuple[float, ...],
    filled: int,
    even: int,
    padding: float,
    how: random.Random,
) -> None:
    """Whatever texts share, however they are laid out, and in whatever parts they are computed."""
    sets = [item_set(str(n), task, trees=trees[n % len(trees)]) for n, task in enumerate(tasks)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "FILLED", filled)
        patch.setattr(packing, "EVEN", even)
        patch.setattr(batching, "PADDING", padding)
        whole = layout(sets, batch_tokens, device=CPU, rungs=rungs)
    expected = {
        str(n): [v for item in task for r in item for v in directly(r)] for n, task in enumerate(tasks)
    }
    assert likelihoods(sets, whole, fake) == expected
    parts = [[part for batch in rung for part in shattered(batch, how)] for rung in whole]
    assert likelihoods(sets, parts, fake) == expected
    distinct = {items.digest: items for items in sets}
    rows = sorted(row for rung in whole for batch in rung for row in rows_in(batch))
    assert rows == sorted((digest, n) for digest, s in distinct.items() for n in range(len(s.rows)))
    for batch in (batch for rung in whole for batch in rung):
        lengths = [len(row.ids) for row in batch.rows]
        assert batch.ids.shape == (len(lengths), max(lengths))
        assert batch.ids.numel() - sum(lengths) <= padding * batch_tokens
        assert len(lengths) == 1 or batch.ids.numel() <= batch_tokens
        assert [rows_in(part) for part in batch.cut(2)] == [
            rows_in(batch.part(at, at + 2)) for at in range(0, len(lengths), 2)
        ]


def tokens_of(items: ItemSet) -> list[int]:
    """How many tokens each sequence has."""
    return sorted(len(pack.row.ids) for pack in packed([(items, n) for n in range(len(items.rows))]))


def options(context: Sequence[int], *choices: Sequence[int]) -> list[Request]:
    return [Request((*context, *option), len(option)) for option in choices]


@pytest.mark.parametrize("trees", [True, False])
def test_options_of_one_token_need_one_forward_of_the_context(trees: bool) -> None:
    context = range(7)
    items = item_set("one", [options(context, [10], [11], [12], [13])], trees=trees)
    assert tokens_of(items) == [7]
    assert items.rows[0].places.tolist() == [6]
    assert items.rows[0].asked.tolist() == [10, 11, 12, 13]


def test_options_share_their_context_and_the_last_token_does_not_go_through() -> None:
    item = options(range(9), [10, 11], [12, 13, 14], [12, 15, 16])
    assert tokens_of(item_set("one", [item], trees=True)) == [9 + 1 + 2 + 1]
    assert tokens_of(item_set("one", [item], trees=False)) == [10, 11, 11]


def test_a_request_that_another_begins_with_costs_nothing() -> None:
    item = [Request((0, 1, 2, 3), 2), Request((0, 1, 2, 3, 4, 5), 5), Request((0, 1, 2, 3), 3)]
    for trees in (True, False):
        assert tokens_of(item_set("one", [item], trees=trees)) == [5]


@pytest.mark.parametrize(("shared", "rows"), [(5, 2), (6, 1)])
def test_a_tree_that_saves_less_than_a_quarter_is_none(shared: int, rows: int) -> None:
    """Two texts of 12 tokens: 19 tokens as a tree are too many, 18 are three quarters."""
    item = options(range(shared), range(20, 33 - shared), range(40, 53 - shared))
    laid_out = item_set("one", [item], trees=True)
    assert len(laid_out.rows) == rows
    assert sum(len(row.ids) for row in laid_out.rows) == (24 if rows == 2 else 18)


@pytest.mark.parametrize(("length", "rows"), [(LARGEST_TREE - 2, 1), (LARGEST_TREE - 1, 2)])
def test_a_tree_has_its_limit(length: int, rows: int) -> None:
    """What each token sees takes memory by the square; a text alone may be as long as it is."""
    laid_out = item_set("one", [options(range(length), [1, 2], [3, 4])], trees=True)
    assert len(laid_out.rows) == rows
    assert sum(tokens_of(laid_out)) == (length + 2 if rows == 1 else 2 * (length + 1))


def test_items_behind_the_same_examples_share_them() -> None:
    """As few-shot examples are shared, whether or not an item has a tree of its own."""
    examples = list(range(300))
    items = [options([*examples, 1000 + n], [1], [2]) for n in range(20)]
    assert tokens_of(item_set("many", items, trees=True)) == [320]
    assert tokens_of(item_set("many", items, trees=False)) == [301] * 20
    many = [options([*examples, *range(1000 * n, 1000 * n + 99)], [1], [2]) for n in range(1, 41)]
    lengths = tokens_of(item_set("many", many, trees=True))
    assert max(lengths) <= LARGEST_TREE
    assert sum(lengths) < 40 * 399 / 2


def test_short_rows_fill_a_sequence_and_long_ones_that_share_little_stay_apart() -> None:
    short = [options([0, n], [1, 2]) for n in range(10, 60)]
    assert tokens_of(item_set("short", short, trees=True)) == [1 + 2 * 50]
    long = [options([0, *range(n, n + 200)], [1, 2]) for n in range(1000, 5000, 1000)]
    assert tokens_of(item_set("long", long, trees=True)) == [202] * 4


ITEMS: dict[str, Items] = {
    "short": [options([n], [3, 4], [3, 5]) for n in (7, 8, 9, 10, 11)],  # texts of 2 tokens go through
    "long": [options([0, *range(20, 40), n], [n, 4, 5], [6], [6, 7, 8]) for n in range(3, 9)],
}


def model_of(name: str, root: Path) -> PreTrainedModel:
    directory = write_family(root, name, dtype=torch.float32)["base"]
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()  # type: ignore[no-any-return]


def by_texts(model: PreTrainedModel, items: Items) -> list[float]:
    """Each request by the model's own forward."""
    answers = []
    with torch.inference_mode():
        for request in (request for item in items for request in item):
            ids = torch.tensor(request.ids)
            logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
            answers += logits.log_softmax(-1).gather(1, ids[1:, None])[-request.scored :, 0].tolist()
    return answers


@pytest.mark.parametrize(
    ("name", "items", "trees", "longest"),
    [
        ("llama", "short", True, 10),
        ("llama", "long", True, 50),
        ("llama", "long", False, 24),
        # Its layers look back 4 tokens: a row may be longer, a text may not.
        ("gemma3", "short", True, 10),
        ("gemma3", "long", False, 24),
    ],
)
def test_a_real_model_gives_what_it_gives_text_by_text(
    name: str, items: str, trees: bool, longest: int, tmp_path: Path
) -> None:
    model = model_of(name, tmp_path)
    laid_out = item_set("one", ITEMS[items], trees=trees)
    rungs = layout([laid_out], 64, device=CPU, rungs=(1.0,))
    assert max(len(row.ids) for batch in rungs[0] for row in batch.rows) == longest
    answers = likelihoods([laid_out], rungs, lambda batch: predictions_alone(model, batch))["one"]
    assert answers == pytest.approx(by_texts(model, ITEMS[items]), abs=2e-6)


@pytest.mark.parametrize(("name", "takes"), [("llama", True), ("gemma3", False)])
def test_a_model_that_looks_back_less_far_than_a_text_is_long_takes_no_trees(
    name: str, takes: bool, tmp_path: Path
) -> None:
    model = model_of(name, tmp_path)
    asked: Any = [SimpleNamespace(requests=[[(request,) for request in item] for item in ITEMS["long"]])]
    assert takes_trees(asked, lambda batch: predictions_alone(model, batch), CPU) is takes


def test_sets_that_ask_for_the_same_at_other_places_differ() -> None:
    """Their tokens, their places and what is asked are equal, but not what is asked where."""
    here = [Request((0, 1, 1), 2), Request((0, 1, 2), 2)]
    there = [Request((0, 1, 1), 1), Request((0, 1, 1), 2), Request((0, 2), 1)]
    sets = [item_set("here", [here], trees=True), item_set("there", [there], trees=True)]
    assert sets[0].recorded_digest == sets[1].recorded_digest
    assert sets[0].digest != sets[1].digest
    expected = {
        name: [value for request in requests for value in directly(request)]
        for name, requests in (("here", here), ("there", there))
    }
    assert likelihoods(sets, layout(sets, 64, device=CPU, rungs=(1.0,)), fake) == expected
