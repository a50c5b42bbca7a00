"""Layers of a family on the host come before they are needed, two at most, and are the same."""

from __future__ import annotations

import pytest
import torch

from gptailor_merge.composing.bank import BUFFERS, Bank, Precision
from gptailor_merge.models.family import Family
from gptailor_merge.recipe.plan import Slot
from gptailor_merge.space.space import Space


@pytest.fixture
def slots(family: dict[str, str]) -> tuple[Family, tuple[Slot, ...]]:
    loaded = Family.load(family["base"], {"math": family["math"]})
    models = tuple(member.model for member in loaded.members)
    space = Space(models, 5, (4,), (1, 2, 3), ("task_arithmetic",), "float32", "float32")
    return loaded, space.select(1, {1}).slots


@pytest.mark.parametrize("on_host", [True, False])
def test_a_fetched_layer_is_made_once_and_is_the_same(
    slots: tuple[Family, tuple[Slot, ...]], on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, (first, second, *_) = slots
    precision = Precision.of("float32", "float32")
    bank, expected = Bank(loaded, precision, on_host=on_host), Bank(loaded, precision)
    made: list[Slot] = []
    build = Bank._build
    monkeypatch.setattr(Bank, "_build", lambda bank, slot: made.append(slot) or build(bank, slot))
    for slot in (first, second, first):
        bank.fetch(slot)
    assert made == ([first, second] if on_host else [])
    for slot in (first, second):
        layer = bank.layer(slot)
        for name, tensor in expected.layer(slot).tensors.items():
            assert torch.equal(layer.tensors[name], tensor)
        bank.fetch(slot)
        assert bank.layer(slot) is layer
    assert made.count(first) == made.count(second) == 2  # once in each bank
    assert bank._coming == {}


def test_what_is_not_asked_for_is_forgotten(slots: tuple[Family, tuple[Slot, ...]]) -> None:
    loaded, (first, second, third, *_) = slots
    bank = Bank(loaded, Precision.of("float32", "float32"), on_host=True)
    for slot in (first, second, third):
        bank.fetch(slot)
    assert list(bank._coming) == [second, third]
    assert len(bank._coming) == BUFFERS
