from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    MistralConfig,
)

from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.prefixes import PrefixWalk, advance, common, head, levels, path_of, trie_order
from gptailor_merge.models.family import Family
from gptailor_merge.space.space import Space

IDS = torch.randint(0, 64, (3, 11), generator=torch.Generator().manual_seed(0))

paths = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8)


@given(paths)
def test_the_order_of_a_trie_keeps_common_prefixes_together(made: list[tuple[int, ...]]) -> None:
    order = trie_order(made)
    assert sorted(order) == list(range(len(made)))
    walked = [made[position] for position in order]
    for depth in range(1, 5):
        prefixes = [path[:depth] for path in walked if len(path) >= depth]
        runs = [p for i, p in enumerate(prefixes) if i == 0 or prefixes[i - 1] != p]
        assert len(runs) == len(set(runs))


def test_common_steps() -> None:
    assert common("abcd", "abxd") == 2
    assert common("ab", "abc") == 2
    assert common("", "abc") == 0


@pytest.fixture
def generation(family: dict[str, str]) -> tuple[Composer, list[Any]]:
    """A composer and 24 plans: children of one parent, merges included."""
    loaded = Family.load(family["base"], {n: family[n] for n in ("math", "code")})
    models = tuple(member.model for member in loaded.members)
    space = Space(models, 5, (3,), (1, 2, 3), ("task_arithmetic", "slerp"), "float32", "float32")
    rng = np.random.RandomState(1)
    points = [space.random(rng)]
    points += [space.mutate(points[0], rng) for _ in range(23)]
    composer = Composer(Bank(loaded, Precision.of("float32", "float32")))
    return composer, [space.decode(point) for point in points]


def hidden(model: Any) -> torch.Tensor:
    """The last layer's output when the model runs by itself."""
    caught = []
    hook = model.base_model.layers[-1].register_forward_hook(lambda *given: caught.append(given[2]))
    with torch.inference_mode():
        model(input_ids=IDS, use_cache=False)
    hook.remove()
    return caught[-1]  # type: ignore[no-any-return]


def test_states_and_logits_are_those_of_running_each_model_alone(
    generation: tuple[Composer, list[Any]],
) -> None:
    composer, plans = generation
    made = [path_of(p) for p in plans]
    order = trie_order(made)
    walk = PrefixWalk(IDS)
    for here, after in zip(order, [*order[1:], None], strict=True):
        model = composer.compose(plans[here])
        keep = 0 if after is None else common(made[here], made[after])
        state = walk.run(model, made[here], keep)
        assert torch.equal(state, hidden(model))
        with torch.inference_mode():
            assert torch.equal(head(model, IDS, state), model(input_ids=IDS, use_cache=False).logits)
        assert type(model.base_model.layers[0]).__name__ == "LlamaDecoderLayer"
    distinct = {made[i][: depth + 1] for i in order for depth in range(3)}
    assert walk.layers_run == len(distinct) < 3 * len(plans)


def test_level_by_level_each_layer_is_asked_for_once_and_states_are_the_same(
    generation: tuple[Composer, list[Any]],
) -> None:
    composer, plans = generation
    made = [path_of(p) for p in plans]
    asked = []

    def step(position: int, depth: int, before: Any) -> Any:
        asked.append((depth, made[position][depth]))
        model = composer.compose(plans[position], only=(depth,))
        return advance(model, IDS, before, range(depth, depth + 1), {depth})[0]

    ended = dict(levels(made, step))
    assert sorted(ended) == list(range(len(plans)))
    for position, state in ended.items():
        assert torch.equal(state, hidden(composer.compose(plans[position])))
    assert len(asked) == len({path[: depth + 1] for path in made for depth in range(3)})
    runs = [one for one, before in zip(asked, [None, *asked], strict=False) if one != before]
    assert len(runs) == len(set(asked))


def test_a_path_that_failed_ends_and_the_others_go_on() -> None:
    def step(position: int, depth: int, before: Any) -> Any:
        return None if made[position][: depth + 1] == ("a", "b") else (before or "") + made[position][depth]

    made: list[Any] = [("a", "b", "c"), ("a", "x"), ("a", "b"), ("d", "b", "c")]
    assert dict(levels(made, step)) == {1: "ax", 3: "dbc"}


def test_each_layer_is_announced_while_the_one_before_computes() -> None:
    told: list[str] = []

    def step(position: int, depth: int, before: Any) -> Any:
        told.append(f"{made[position][depth]}{depth}")
        return True

    made: list[Any] = [("a", "b"), ("a", "c"), ("d", "b", "e")]
    ended = levels(made, step, lambda position, depth: told.append(f"-> {made[position][depth]}{depth}"))
    assert [position for position, _ in ended] == [0, 1, 2]
    assert told == ["-> a0", "-> d0", "a0", "-> b1", "d0", "-> c1", "b1", "b1", "-> e2", "c1", "e2"]


def test_a_failing_model_leaves_the_path_sound(
    generation: tuple[Composer, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    composer, plans = generation
    path, model = path_of(plans[0]), composer.compose(plans[0])
    expected = hidden(model)
    walk = PrefixWalk(IDS)
    monkeypatch.setattr(type(model.base_model.norm), "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        walk.run(model, path, keep=3)
    monkeypatch.undo()
    assert torch.equal(walk.run(model, path, keep=2), expected)
    assert torch.equal(walk.run(model, path, keep=0), expected)
    assert walk.layers_run == 3 + 1


SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=4),
        # Two kinds of attention, and logits that are capped after the head.
        Gemma2Config(**SMALL, sliding_window=4, query_pre_attn_scalar=4),
        Gemma3TextConfig(**SMALL, sliding_window=4, query_pre_attn_scalar=4),
        CohereConfig(**SMALL),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_in_parts_is_the_model_in_one_piece(config: Any) -> None:
    """Layers swapped for others of the same kind, as recipes of these architectures would."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    first = list(model.base_model.layers)
    kinds = [getattr(layer.self_attn, "is_sliding", None) for layer in first]
    if config.model_type.startswith("gemma"):
        assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    rng = np.random.RandomState(0)
    walk, previous = PrefixWalk(IDS), None
    for _ in range(6):
        chosen = [int(rng.choice([j for j in range(6) if kinds[j] == kind])) for kind in kinds]
        if previous is not None:
            chosen[:3] = previous[:3]
        previous = chosen
        model.base_model.layers = torch.nn.ModuleList([first[index] for index in chosen])
        state = walk.run(model, tuple(chosen), keep=3)
        assert torch.equal(state, hidden(model))
        with torch.inference_mode():
            whole = model(input_ids=IDS, use_cache=False).logits
            assert torch.equal(head(model, IDS, state), whole)
            part = head(model, IDS[1:2, :-1], state[1:2, :-1])
        torch.testing.assert_close(part, whole[1:2, :-1], rtol=1e-5, atol=1e-6)
    assert walk.layers_run == 6 + 5 * 3


def test_other_embeddings_are_another_path(generation: tuple[Composer, list[Any]]) -> None:
    _, plans = generation
    one = plans[0]
    other = type(one)(**{**vars(one), "embeddings": (("elsewhere",), one.embeddings[1])})
    assert common(path_of(one), path_of(other)) == 0
    assert common(path_of(one), path_of(type(one)(**{**vars(one), "head": other.embeddings}))) == 3
