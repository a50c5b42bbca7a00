from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gptailor_merge.composing.bank import Bank, Precision, belongs_on_host, cache_bytes, family_bytes
from gptailor_merge.composing.compose import Composer
from gptailor_merge.planning.check import check_with_family
from gptailor_merge.planning.resolve import plan as resolve
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from tests.conftest import recipe_of

IDS = torch.tensor([[3, 14, 15, 9, 2, 6, 5], [2, 7, 18, 28, 1, 8, 2]])


def test_generation_with_a_cache_equals_generation_without(family: dict[str, str]) -> None:
    plan, loaded = check_with_family(Recipe.from_mapping(recipe_of(family, dtype="float32")))
    model = Composer(Bank(loaded, Precision.of("float32", None))).compose(plan)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    cached = model.generate(IDS, use_cache=True, **options)
    assert torch.equal(cached, model.generate(IDS, use_cache=False, **options))
    assert cached.shape == (2, 19)


@pytest.mark.parametrize(
    "precision", [Precision(), Precision.of("float32", "bfloat16", torch.bfloat16)], ids=["plain", "search"]
)
def test_selecting_copies_nothing(family: dict[str, str], precision: Precision) -> None:
    """Also where merges are calculated in a wider dtype than the family's, as a search on a GPU does."""
    plan, loaded = check_with_family(Recipe.from_mapping(recipe_of(family)))
    bank = Bank(loaded, precision)
    composer = Composer(bank)
    first, second = composer.compose(plan), composer.compose(plan)
    for name, tensor in first.state_dict().items():
        assert tensor.data_ptr() == second.state_dict()[name].data_ptr(), name
    stored = bank.stored(plan.slots[0].layers[0][0], 0)
    for name, tensor in bank.layer(plan.slots[0]).tensors.items():
        assert tensor.data_ptr() == stored[name].data_ptr(), name


def test_a_narrower_dtype_of_arithmetic_rounds_selected_layers_too(
    make_family: Callable[..., dict[str, str]],
) -> None:
    """As in mergekit, which casts what it has loaded to `dtype` before all else."""
    plan, loaded = check_with_family(Recipe.from_mapping(recipe_of(make_family(dtype=torch.float32))))
    wide, narrow = (
        Bank(loaded, Precision.of(dtype, "float32")).layer(plan.slots[0]).tensors["mlp.up_proj.weight"]
        for dtype in ("float32", "bfloat16")
    )
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, wide.bfloat16().float())
    assert not torch.equal(narrow, wide)


def test_a_gpu_has_room_for_what_it_is_given(family: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Family and cache of a bank on the device leave some of its memory; one on the host leaves half."""
    loaded = check_with_family(Recipe.from_mapping(recipe_of(family)))[1]
    size, gpu = family_bytes(loaded, torch.bfloat16), torch.device("cuda")
    assert size == 3 * 2 * loaded.parameters(range(5))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for share, on_host, cache in (
        (2.0, False, size // 2),
        (1.25, True, int(1.25 * size) // 2),
        (4.0, False, size),
    ):
        free = int(share * size)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert belongs_on_host(loaded, torch.bfloat16, gpu) == on_host
        assert cache_bytes(loaded, torch.bfloat16, gpu, on_host=on_host) == cache


def test_composed_models_live_side_by_side(family: dict[str, str]) -> None:
    """A second recipe changes neither the layers, the depth nor the layer indices of the first."""
    document = recipe_of(family)
    plan, loaded = check_with_family(Recipe.from_mapping(document))
    shorter, _ = check_with_family(
        Recipe.from_mapping({**document, "slices": document["slices"][2:]})  # type: ignore[index]
    )
    composer = Composer(Bank(loaded, Precision()))
    model = composer.compose(plan)
    with torch.inference_mode():
        before = model(IDS).logits
        other = composer.compose(shorter)
        assert other(IDS).logits.shape == before.shape
        assert not torch.equal(other(IDS).logits, before)
        assert torch.equal(model(IDS).logits, before)
    assert (model.config.num_hidden_layers, other.config.num_hidden_layers) == (4, 3)
    for composed in (model, other):
        indices = [layer.self_attn.layer_idx for layer in composed.model.layers]
        assert indices == list(range(len(indices)))


def test_merged_layers_are_kept_by_content_within_a_budget(family: dict[str, str]) -> None:
    plan, loaded = check_with_family(Recipe.from_mapping(recipe_of(family)))
    merged = [slot for slot in plan.slots if slot.operation.method != "passthrough"]
    assert len(merged) == 2
    roomy = Bank(loaded, Precision())
    assert roomy.layer(merged[0]) is roomy.layer(merged[0])
    tight = Bank(loaded, Precision(), cache_bytes=1)
    first = tight.layer(merged[0])
    tight.layer(merged[1])
    again = tight.layer(merged[0])
    assert again is not first
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, again.tensors[name])


def test_merged_embeddings_are_kept_within_the_same_budget(family: dict[str, str]) -> None:
    """Composed models do not hold what the bank has dropped; they come out the same again."""
    names = (family["math"], family["code"])

    def plan_of(weight: float) -> Plan:
        merged = {"method": "linear", "weights": dict(zip(names, (weight, 1 - weight), strict=True))}
        return resolve(Recipe.from_mapping(recipe_of(family, parameters={"embeddings": merged})))

    _, loaded = check_with_family(Recipe.from_mapping(recipe_of(family)))
    for most, kept in ((1, False), (10**9, True)):
        composer = Composer(Bank(loaded, Precision(), cache_bytes=most))
        first = composer.compose(plan_of(0.25)).get_input_embeddings().weight
        composer.compose(plan_of(0.75))
        again = composer.compose(plan_of(0.25)).get_input_embeddings().weight
        assert torch.equal(first, again)
        assert (first.data_ptr() == again.data_ptr()) == kept


def test_what_is_cheap_to_make_again_goes_first(family: dict[str, str]) -> None:
    """Selected layers, which a bank on the host only copies, before merged ones, until they are old."""
    plan, loaded = check_with_family(Recipe.from_mapping(recipe_of(family)))
    slots = {slot.operation.method: slot for slot in plan.slots}
    merged, selected = slots["task_arithmetic"], plan.slots[0]
    others = [slot for slot in plan.slots if slot not in (merged, selected)]
    size = Bank(loaded, Precision()).layer(merged).nbytes
    bank = Bank(loaded, Precision(), on_host=True, cache_bytes=2 * size)
    kept = bank.layer(merged)
    copy = bank.layer(selected)
    bank._made[merged].rank, bank._made[selected].rank = 2.0, 1.0  # as if measured
    bank.layer(others[0])
    assert bank.layer(merged) is kept
    assert bank.layer(selected) is not copy
    assert len(bank._made) == 2


def test_computing_wider_changes_no_value(family: dict[str, str]) -> None:
    plan, loaded = check_with_family(
        Recipe.from_mapping(recipe_of(family, dtype="float32", out_dtype="bfloat16"))
    )
    narrow = Composer(Bank(loaded, Precision.of("float32", "bfloat16"))).compose(plan).state_dict()
    wide = Composer(Bank(loaded, Precision.of("float32", "bfloat16", torch.float32))).compose(plan)
    for name, tensor in wide.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, narrow[name].float())
