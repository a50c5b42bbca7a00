"""The states of teachers: which layers, what is kept of them, and how far a model is from them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.errors import UnwritableError
from gptailor_merge.healing.lessons import lessons
from gptailor_merge.healing.states import PLACES, Places, TeacherStates, distance, places_of
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model
from gptailor_merge.objectives.protocols import Watch
from gptailor_merge.scoring.passes import predictions_alone
from gptailor_merge.scoring.teachers import Teachers
from tests.conftest import DEMO
from tests.nested_zoo import NESTED, write_nested_family
from tests.zoo import FIXED, ZOO, write_family

CPU = torch.device("cpu")
OFTEN = ("llama", "qwen3_moe", "lfm2", "gemma3", "mllama")
"""Architectures of one kind each; the others are for every week."""


WIDTH, ROUNDING = 128, 1 / 16
"""The width of the demo's models, and how far a number of float8 with three bits may be off."""


def token_set(name: str, first: int, count: int = 4) -> TokenSet:
    ids = torch.arange(first, first + count * 16).view(count, 16) % 500
    return TokenSet(name, tuple(ids), f"digest of {name}")


def batch_of(ids: TokenSet) -> Batch:
    ((batch,),) = layout([ids], 8192, device=CPU, rungs=(1.0,))
    return batch


@given(st.integers(1, 40), st.data())
def test_places_come_after_the_first_removed_layer(depth: int, data: st.DataObject) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    places = places_of(kept, {})
    moved = [layer for layer, of_teacher in enumerate(kept) if layer != of_teacher]
    assert places.teacher_layers == tuple(kept[layer] for layer in places.layers)
    assert list(places.layers) == sorted(set(places.layers))
    assert len(places.layers) == min(PLACES, len(moved))
    assert set(places.layers) <= set(moved)
    if len(moved) > 1:
        assert (places.layers[0], places.layers[-1]) == (moved[0], moved[-1])


@given(st.integers(0, 2**16))
def test_the_distance_is_the_relative_square(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # One token is a thousand times as large as the others, as models have them.
    size = torch.tensor([1.0, 1000.0, 1.0, 0.01, 1.0])[None, :, None]
    theirs = [torch.randn(2, 5, 32, generator=generator) * size for _ in range(3)]
    ours = [states + 0.5 * torch.randn(states.shape, generator=generator) * size for states in theirs]
    kept = kept_of(theirs)
    expected = sum(
        ((a - b)[:, 1:].square().sum(-1) / b[:, 1:].square().sum(-1)).mean()
        for a, b in zip(ours, theirs, strict=True)
    )
    torch.testing.assert_close(distance(ours, **kept), torch.as_tensor(expected) / 3, rtol=0.02, atol=0)
    assert float(distance(theirs, **kept)) < ROUNDING**2


def kept_of(states: list[torch.Tensor]) -> dict[str, Any]:
    ids = TokenSet("a", tuple(torch.arange(5) for _ in range(len(states[0]))), "digest")
    with tempfile.TemporaryDirectory() as directory:
        keeper = TeacherStates([ids], Path(directory))
        keeper.see(batch_of(ids), states)
        found = keeper.of(ids)
        return {"theirs": found["states"].clone(), "scales": found["scales"]}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param(name, write, marks=() if name in OFTEN else pytest.mark.weekly)
        for names, write in (((*ZOO, *FIXED), write_family), (NESTED, write_nested_family))
        for name in names
    ],
)
def test_what_is_watched_is_what_transformers_calls_hidden_states(
    name: str, write: Callable[[Path, str], dict[str, str]], tmp_path: Path
) -> None:
    family = write(tmp_path, name)
    config = Family.load(family["base"], {}).base.text_config
    if not places_of((0, 2, 3, 5), config).layers:
        assert name == "mllama"  # without an image, layers of it are skipped
        return
    model = load_model(Path(family["base"]), torch.float32, CPU)
    ids = TokenSet("a", tuple(torch.arange(2, 14).view(2, 6)), "digest")
    batch = batch_of(ids)
    seen: list[torch.Tensor] = []
    list(predictions_alone(model, batch, watch=Watch((1, 3, 4), lambda _, states: seen.extend(states))))
    with torch.no_grad():
        theirs = model(input_ids=batch.ids, use_cache=False, output_hidden_states=True).hidden_states
    assert len(seen) == 3
    for layer, states in zip((1, 3, 4), seen, strict=True):
        assert torch.equal(states, theirs[layer])


def test_each_text_has_the_states_of_its_own_teacher(tmp_path: Path) -> None:
    members = {name: str(DEMO / "family" / name) for name in ("stories", "maths")}
    family = Family.load(str(DEMO / "family" / "base"), members)
    teachers = Teachers(family, CPU, torch.float32)
    sets = [token_set("stories", 0), token_set("maths", 100), token_set("more maths", 200)]
    taught = {"stories": "stories", "maths": "maths", "more maths": "maths"}
    places = Places((2, 5), (4, 8))
    found = lessons(
        sets,
        {name: teachers.get(member) for name, member in taught.items()},
        top_k=3,
        places=places,
        device=CPU,
        directory=tmp_path,
    )
    assert found.layers == (2, 5)
    assert all("states" not in lesson for lesson in found.apart)
    assert len(found.taught) == 9
    for lesson in found.taught:
        name = next(s.name for s in sets for ids in s.sequences if torch.equal(ids, lesson["input_ids"]))
        assert lesson["states"].shape == (2, 16, WIDTH)
        for member in ("stories", "maths"):
            model = teachers.model(member)
            with torch.no_grad():
                states = model(lesson["input_ids"][None], output_hidden_states=True).hidden_states
            apart = distance([states[4], states[8]], lesson["states"][None], lesson["scales"][None])
            assert (float(apart) < ROUNDING**2) == (member == taught[name])


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    ids = token_set("a", 0)
    with pytest.raises(UnwritableError, match="states-0 cannot be written: No space left on device"):
        TeacherStates([ids], tmp_path).see(batch_of(ids), [torch.zeros(4, 16, 8)])
