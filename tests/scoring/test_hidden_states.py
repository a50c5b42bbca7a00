"""Measures on hidden states, against what transformers says they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TextSource, TokenSet, tokenize
from gptailor_merge.calibration.token_trees import Request, item_set
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.errors import ConfigError, ScoringError
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.scoring.hidden_states import DISTANCE, INFLUENCE, SIMILARITY, HiddenStates, block_of
from gptailor_merge.search.baselines.subject import base_of
from gptailor_merge.space.outer import whole
from gptailor_merge.space.space import Space
from tests.zoo import DEPTH, write_family

CPU = torch.device("cpu")


@pytest.fixture
def sets(family: dict[str, str], texts: dict[str, str]) -> list[TokenSet]:
    """Texts of two lengths."""
    tokenizer = load_tokenizer(Path(family["base"]))
    lengths = zip(texts.items(), (16, 11), strict=True)
    return [tokenize(n, TextSource(f), tokenizer, tokens=96, sequence_length=k) for (n, f), k in lengths]


def space_of(family: dict[str, str], depth: int = 5) -> Space:
    models = (family["base"], family["math"])
    return Space(models, depth, (depth - 2,), (1, 2, 3), ("task_arithmetic",), "float32", "float32")


def dense(family: dict[str, str], member: str = "base", depth: int = 5) -> Plan:
    """A member with all its layers."""
    model = family[member]
    subject = replace(base_of(space_of(family, depth)), sources=(model,), outer=whole(model))
    return subject.without(())


def hidden_of(family: dict[str, str], sets: Any, batch_tokens: int = 64, **bank: Any) -> HiddenStates:
    loaded = Family.load(family["base"], {"math": family["math"]})
    composer = Composer(Bank(loaded, Precision.of("float32", "float32", torch.float32), **bank))
    return HiddenStates(lambda: composer, layout(sets, batch_tokens, device=CPU))


def by_transformers(directory: str, ids: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    """What goes into each layer, and what the last gives before the final norm, each [length, width]."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    last: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda *call: last.append(call[2]))
    with torch.inference_mode():
        states = model(ids[None], output_hidden_states=True).hidden_states
    return [state[0].double().numpy() for state in (*states[:-1], last[0])]


def cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_block_influence_is_that_of_the_paper(family: dict[str, str], sets: list[TokenSet]) -> None:
    """1 − the mean over all tokens of cos(X_i, X_{i+1}), with the states that transformers gives."""
    base_plan = dense(family)
    outcome = hidden_of(family, sets).block_influence(base_plan)
    states = [by_transformers(family["base"], ids) for token_set in sets for ids in token_set.sequences]
    for layer in range(5):
        cosines = np.concatenate([cosine(s[layer], s[layer + 1]) for s in states])
        score = outcome.scores[INFLUENCE][str(layer)]
        assert score.mean == pytest.approx(1 - cosines.mean(), abs=1e-6)
        assert score.count == len(cosines) == outcome.tokens


def test_angular_distance_is_that_of_the_paper(family: dict[str, str], sets: list[TokenSet]) -> None:
    """arccos(cos(x^(l), x^(l+n))) / π at the last token, mean over sequences."""
    base_plan = dense(family)
    outcome = hidden_of(family, sets).angular_distances(base_plan, [2, 3])
    states = [by_transformers(family["base"], ids) for token_set in sets for ids in token_set.sequences]
    blocks = {block_of(name): score for name, score in outcome.scores[DISTANCE].items()}
    assert set(blocks) == {(0, 2), (1, 3), (2, 4), (3, 5), (0, 3), (1, 4), (2, 5)}
    for (first, stop), score in blocks.items():
        angles = [np.arccos(cosine(s[first][-1], s[stop][-1])) / np.pi for s in states]
        assert score.mean == pytest.approx(np.mean(angles), abs=1e-6)
        assert score.count == len(states)


def test_similarity_is_the_cosine_of_whole_sequences(family: dict[str, str], sets: list[TokenSet]) -> None:
    """Of the last layer's states, all tokens of a sequence as one vector, on the first rung."""
    hidden, base = hidden_of(family, sets), dense(family)
    itself = hidden.similarity(base, base)
    assert itself.scores[SIMILARITY]["last layer"].mean == pytest.approx(1.0)
    outcome = hidden.similarity(dense(family, "math"), base)
    first = [ids for token_set in sets for ids in token_set.sequences[: token_set.rows_until(0.125)]]
    assert outcome.tokens == itself.tokens == sum(map(len, first))
    cosines = [
        cosine(*(by_transformers(family[name], ids)[-1].reshape(-1) for name in ("math", "base")))
        for ids in first
    ]
    assert outcome.scores[SIMILARITY]["last layer"].mean == pytest.approx(np.mean(cosines), abs=1e-6)


def measures(hidden: HiddenStates, measured_plan: Plan, reference: Plan) -> list[Any]:
    outcomes = [
        hidden.block_influence(measured_plan),
        hidden.angular_distances(measured_plan, [2]),
        hidden.similarity(measured_plan, reference),
    ]
    return [(outcome.scores, outcome.tokens) for outcome in outcomes]


def test_batches_and_where_the_family_lives_make_no_difference(
    family: dict[str, str], sets: list[TokenSet]
) -> None:
    space = space_of(family)
    plans = space.select(1, {2}), dense(family)
    expected = measures(hidden_of(family, sets), *plans)
    for hidden in (hidden_of(family, sets, batch_tokens=16), hidden_of(family, sets, on_host=True)):
        for (scores, tokens), (others, same) in zip(expected, measures(hidden, *plans), strict=True):
            assert tokens == same
            for name, by_part in scores.items():
                for part, score in by_part.items():
                    assert others[name][part].mean == pytest.approx(score.mean, abs=1e-6)


def test_a_batch_that_does_not_fit_is_cut(
    family: dict[str, str], sets: list[TokenSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = space_of(family)
    plans = space.select(1, {2}), dense(family)
    expected = measures(hidden_of(family, sets), *plans)
    original = HiddenStates._states

    def small(self, model_plan, batch):  # type: ignore[no-untyped-def]
        if len(batch.ids) > 1:
            raise torch.OutOfMemoryError
        return original(self, model_plan, batch)

    monkeypatch.setattr(HiddenStates, "_states", small)
    for (scores, tokens), (others, same) in zip(
        expected, measures(hidden_of(family, sets), *plans), strict=True
    ):
        assert tokens == same
        for name, by_part in scores.items():
            assert [s.mean for s in others[name].values()] == pytest.approx(
                [s.mean for s in by_part.values()], abs=1e-6
            )


def test_rows_of_items_count_their_tokens_and_no_padding(family: dict[str, str]) -> None:
    """Where there are no texts. A row's last token is the last before the padding."""
    requests = [[Request((5, 9, 3, 7), 1)], [Request((4, 8, 6, 2, 11, 12, 13, 14, 15, 16, 17), 2)]]
    items = item_set("items", requests, trees=False)
    outcome = hidden_of(family, [items]).block_influence(dense(family))
    states = [by_transformers(family["base"], ids) for ids in items.sequences]
    cosines = np.concatenate([cosine(s[2], s[3]) for s in states])
    assert outcome.scores[INFLUENCE]["2"].count == len(cosines) == 3 + 10
    assert outcome.scores[INFLUENCE]["2"].mean == pytest.approx(1 - cosines.mean(), abs=1e-6)
    distances = hidden_of(family, [items]).angular_distances(dense(family), [2])
    angles = [np.arccos(cosine(s[1][-1], s[3][-1])) / np.pi for s in states]
    assert distances.scores[DISTANCE]["1:3"].mean == pytest.approx(np.mean(angles), abs=1e-6)


def test_texts_alone_are_looked_at_where_there_are_some(family: dict[str, str], sets: list[TokenSet]) -> None:
    items = item_set("items", [[Request((5, 9, 3, 7), 1)]], trees=False)
    base_plan = dense(family)
    alone, beside = (
        hidden_of(family, chosen).block_influence(base_plan) for chosen in (sets, [*sets, items])
    )
    assert (alone.scores, alone.tokens) == (beside.scores, beside.tokens)


def test_nothing_to_run_and_states_that_are_no_numbers_are_told(
    family: dict[str, str], sets: list[TokenSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    base_plan = dense(family)
    with pytest.raises(ConfigError, match="on texts or on tasks with right answers, and the objectives have"):
        hidden_of(family, []).block_influence(base_plan)
    hidden = hidden_of(family, sets)
    monkeypatch.setattr(
        HiddenStates,
        "_states",
        lambda _, __, batch: iter([torch.full((*batch.ids.shape, 2), torch.nan)] * 2),
    )
    with pytest.raises(ScoringError, match="the block influence of layers is not finite"):
        hidden.block_influence(base_plan)
    monkeypatch.setattr(HiddenStates, "_states", lambda *_: 1 / 0)
    with pytest.raises(ScoringError, match="angular distance of layers: ZeroDivisionError"):
        hidden.angular_distances(base_plan, [2])


@pytest.mark.parametrize("name", ["gemma3", "lfm2", "qwen3_moe", "gpt_neox", "ernie4_5_moe"])
def test_states_are_those_of_the_layers_whatever_the_architecture(
    name: str, sets: list[TokenSet], tmp_path: Path
) -> None:
    family = write_family(tmp_path, name, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(family["base"], dtype=torch.float32)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in model.base_model.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    sums, count = np.zeros(DEPTH), 0
    for token_set in sets:
        for ids in token_set.sequences:
            seen.clear()
            with torch.inference_mode():
                model(ids[None], use_cache=False)
            sums += [float(cosine(a[0].double().numpy(), b[0].double().numpy()).sum()) for a, b in seen]
            count += len(ids)
    outcome = hidden_of(family, sets).block_influence(dense(family, depth=DEPTH))
    influence = [score.mean for score in outcome.scores[INFLUENCE].values()]
    assert influence == pytest.approx(list(1 - sums / count), abs=1e-5)
