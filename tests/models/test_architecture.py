from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, GPT2Config

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.architecture import Architecture, difference, misfits, nearest, pattern, pruned
from tests.zoo import ZOO, config_of


@pytest.mark.parametrize("name", ZOO)
def test_tensors_are_those_of_the_model(name: str) -> None:
    model = AutoModelForCausalLM.from_config(config_of(name))
    own = Architecture.of(config_of(name).to_dict())
    layers = {f"{own.prefix}{i}.{n}": s for i, layer in enumerate(own.layers) for n, s in layer.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert {**own.before, **layers, **own.after} == expected
    assert "embed" in next(iter(own.before))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("llama", "aaaaaaaa"),
        ("qwen2", "aaabbbbb"),
        ("qwen3", "abbaabaa"),
        ("qwen3_moe", "abbbbabb"),
        ("gemma2", "abababab"),
        ("gemma3", "aaaaabaa"),
        ("smollm3", "aaabaaab"),
        ("lfm2", "abbaabaa"),
    ],
)
def test_kinds_of_layers(name: str, kinds: str) -> None:
    found = Architecture.of(config_of(name).to_dict()).kinds
    letters = {kind: chr(ord("a") + place) for place, kind in enumerate(dict.fromkeys(found))}
    assert "".join(letters[kind] for kind in found) == kinds


@pytest.mark.parametrize("name", ZOO)
def test_any_layers_in_any_order_can_be_kept_where_the_config_lists_them(name: str) -> None:
    config = config_of(name).to_dict()
    kept = [0, 7, 3, 3, 5, 1]
    assert pattern(config, 6) is None
    assert misfits(config, kept) == []
    whole, cut = Architecture.of(config), Architecture.of(pruned(config, kept))
    assert cut.layers == tuple(whole.layers[layer] for layer in kept)


ERNIE = config_of("ernie4_5_moe").to_dict()


def test_a_pattern_computed_from_the_index_allows_only_what_keeps_it() -> None:
    assert misfits(ERNIE, [0, 1, 4, 5, 6, 7]) == []
    ((slot, reason), *_) = misfits(ERNIE, [0, 1, 3, 4, 5, 6])
    assert slot == 2
    assert reason == "mlp is Ernie4_5_MoeSparseMoeBlock, not Ernie4_5_MoeMLP"
    chosen = nearest(ERNIE, [0, 1, 3, 4, 5, 6])
    assert chosen is not None
    assert len(chosen) == 6
    assert misfits(ERNIE, chosen) == []
    fixed = pattern(ERNIE, 6)
    assert fixed == Architecture.of(ERNIE).kinds[:6]


def test_layers_that_depend_on_the_number_of_layers_cannot_be_pruned() -> None:
    config = config_of("minimax").to_dict()
    assert nearest(config, list(range(6))) is None


def test_differences_are_told_by_their_setting() -> None:
    kinds = Architecture.of(config_of("qwen3").to_dict()).kinds
    assert difference(kinds[0], kinds[1]) == "layer_types is sliding_attention, not full_attention"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=64), "GPT2Model has no list `layers`"),
        ({"model_type": "llamaa", "num_hidden_layers": 2}, "transformers cannot build this model"),
    ],
)
def test_what_is_no_list_of_layers_is_refused(config: object, message: str) -> None:
    given = config.to_dict() if isinstance(config, GPT2Config) else config
    with pytest.raises(FamilyError, match=message):
        Architecture.of(given)  # type: ignore[arg-type]
