"""Maps that make up for removed layers: the closed form, and what it is fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor_merge.calibration.batches import Batch, layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.composing.editing import save_map
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import MLP, Edit, Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.repair.cuts import Cut, cuts_of, dense, with_edit
from gptailor_merge.repair.regression import Climb, Moments
from gptailor_merge.repair.states import DenseStates
from gptailor_merge.scoring.passes import Passes
from tests.zoo import write_family

DEPTH = 8
IDS = torch.randint(2, 60, (8, 16), generator=torch.Generator().manual_seed(3))

FIRST_BATCH = 5 * 16 * 16 * 4
"""Bytes of a state of the first five sequences."""


def stack(model: str, kept: list[int], **top: Any) -> Plan:
    slices = [
        {"sources": [{"model": model, "layer_range": [i, i + 1]}], "parameters": {"op": "select"}}
        for i in kept
    ]
    return plan(Recipe.from_mapping({"merge_method": "tailor", "base_model": model, "slices": slices, **top}))


def composer_over(model: str) -> Composer:
    family = Family.load(model, {})
    return Composer(Bank(family, Precision(compute=torch.float32)))


def climb_of(
    composer: Composer, pruned: Plan, batches: list[Batch], climb_bytes: int = 2**20, dense_bytes: int = 2**20
) -> Climb:
    """A climb over the base's states behind the cuts of a plan."""
    layers = [cut.removed.stop - 1 for cut in cuts_of(pruned, DEPTH)]
    base = DenseStates(composer, dense(pruned.base_model, DEPTH), batches, layers, dense_bytes)
    return Climb(composer, batches, base, climb_bytes)


def hidden(composer: Composer, resolved: Plan, layer: int) -> torch.Tensor:
    """What the layer in a slot gives, float64 [tokens, width]."""
    outputs = []
    model = composer.compose(resolved)
    hook = model.base_model.layers[layer].register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.inference_mode():
        model(IDS)
    hook.remove()
    return outputs[0].double().flatten(0, 1)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_a_map_solves_the_regression_that_the_module_says(ridge: float) -> None:
    """The gradient of Σ |y - h - D m|² + ridge · s · n · |D|² is zero at D = M - I."""
    torch.manual_seed(1)
    m, wanted = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 6, dtype=torch.float64)
    gram = m.T @ m
    map_less_one = Moments(gram, m.T @ wanted, 0.0, 50).solve(ridge) - torch.eye(6, dtype=torch.float64)
    d = map_less_one.clone().requires_grad_()
    mean_square = (m**2).mean()
    ((wanted - m @ d.T).square().sum() + ridge * mean_square * 50 * d.square().sum()).backward()
    assert d.grad is not None
    torch.testing.assert_close(d.grad, torch.zeros_like(d), atol=1e-9, rtol=0)


def test_a_strong_ridge_leaves_the_model_as_it_is() -> None:
    m = torch.randn(50, 6, dtype=torch.float64)
    solved = Moments(m.T @ m, m.T @ torch.randn(50, 6, dtype=torch.float64), 0.0, 50).solve(1e12)
    torch.testing.assert_close(solved, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


def test_cuts_are_where_layers_are_missing_behind_another() -> None:
    pruned = stack("org/m", [1, 2, 5, 5, 6])
    assert cuts_of(pruned, 8) == [Cut(1, range(3, 5)), Cut(4, range(7, 8))]
    assert cuts_of(stack("org/m", [0, 1, 2]), 3) == []
    everywhere = cuts_of(pruned, 8, everywhere=True)
    # From the first cut on; slot 2 is followed by its own layer again.
    assert [cut.slot for cut in everywhere] == [1, 3, 4]
    assert [len(cut.removed) for cut in everywhere] == [2, 0, 1]


@pytest.mark.parametrize("name", ["llama", "granite", "gpt_neox", "starcoder2"])
def test_moments_are_those_of_the_mlp_and_of_what_is_missing(name: str, tmp_path: Path) -> None:
    """In granite the MLP's part is scaled, in gpt_neox attention runs beside it, starcoder2 has biases."""
    base = write_family(tmp_path, name, torch.float32)["base"]
    composer, pruned = composer_over(base), stack(base, [0, 1, 2, 5, 6, 7])
    (cut,) = cuts_of(pruned, DEPTH)
    # In two batches, that they add up.
    batches = [Batch(IDS[:5], ()), Batch(IDS[5:], ())]
    moments = climb_of(composer, pruned, batches).moments(pruned, cut)
    full = stack(base, list(range(DEPTH)))
    h, y = hidden(composer, pruned, 2), hidden(composer, full, 4)
    rest = hidden(composer, with_edit(pruned, 2, Edit(MLP)), 2)
    assert moments.tokens == IDS.numel()
    torch.testing.assert_close(moments.gram, (h - rest).T @ (h - rest), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moments.cross, (h - rest).T @ (y - h), rtol=1e-4, atol=1e-6)
    assert moments.square == pytest.approx(float((y - h).square().sum()), rel=1e-4)


def test_the_error_is_what_a_map_leaves() -> None:
    torch.manual_seed(1)
    m, wanted, matrix = (torch.randn(n, 6, dtype=torch.float64) for n in (50, 50, 6))
    moments = Moments(m.T @ m, m.T @ wanted, float(wanted.square().sum()), 50)
    left = (wanted - m @ (matrix - torch.eye(6)).T).square().sum() / 50
    assert moments.error(matrix) == pytest.approx(float(left))


@pytest.fixture(scope="module")
def two_cuts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Composer, Plan]:
    base = write_family(tmp_path_factory.mktemp("two"), "llama", torch.float32)["base"]
    return composer_over(base), stack(base, [0, 2, 3, 6, 7], dtype="float32")


@pytest.mark.parametrize(
    ("climb_bytes", "dense_bytes"), [(2**20, 2**20), (0, 0), (FIRST_BATCH, 2 * FIRST_BATCH)]
)
def test_a_climb_to_the_second_cut_sees_the_repair_of_the_first(
    two_cuts: tuple[Composer, Plan], climb_bytes: int, dense_bytes: int, tmp_path: Path
) -> None:
    """However many states are kept, what is computed again has the same bits."""
    composer, pruned = two_cuts
    batches = [Batch(IDS[:5], ()), Batch(IDS[5:], ())]
    first, second = cuts_of(pruned, DEPTH)
    climb = climb_of(composer, pruned, batches, climb_bytes, dense_bytes)
    file, digest = save_map(climb.moments(pruned, first).solve(0.1), tmp_path, "m.safetensors")
    repaired = with_edit(pruned, first.slot, Edit(MLP, digest, str(file)))
    moments = climb.moments(repaired, second)
    anew = climb_of(composer, repaired, batches).moments(repaired, second)
    assert torch.equal(moments.gram, anew.gram)
    assert torch.equal(moments.cross, anew.cross)
    assert moments.square == anew.square


def test_states_of_the_base_are_kept_behind_evenly_spaced_layers(two_cuts: tuple[Composer, Plan]) -> None:
    composer, pruned = two_cuts
    batches = [Batch(IDS[:5], ()), Batch(IDS[5:], ())]
    base = dense(pruned.base_model, DEPTH)
    one_layer = IDS.numel() * 16 * 4
    states = DenseStates(composer, base, batches, range(6), 2 * one_layer)
    by_layer = [states.behind(layer, 1) for layer in range(DEPTH)]
    assert {number: sorted(kept) for number, kept in states._kept.items()} == {1: [2, 4]}
    whole = hidden(composer, base, 3).view(*IDS.shape, -1)[5:]
    torch.testing.assert_close(by_layer[3].double(), whole, rtol=1e-5, atol=1e-6)
    assert states.behind(2, 1) is states._kept[1][2]


def test_predictions_above_a_cut_are_those_of_the_whole_model(two_cuts: tuple[Composer, Plan]) -> None:
    composer, pruned = two_cuts
    tokens = TokenSet("x", tuple(IDS), "x")
    (batches,) = layout([tokens], 80, device=IDS.device, rungs=(1.0,))
    passes = Passes([Perplexity("nll", (tokens,))], [batches], (1.0,))
    first, second = cuts_of(pruned, DEPTH)
    climb = climb_of(composer, pruned, batches, climb_bytes=FIRST_BATCH)
    changed = with_edit(pruned, second.slot, Edit(MLP))
    for plan_of_step in (pruned, changed):
        climb.moments(pruned, first if plan_of_step is pruned else second)
        scores = passes.scores(passes.measure_with(climb.forward(plan_of_step)))
        assert scores == passes.score(composer.compose(plan_of_step))


@pytest.mark.parametrize("name", ["llama", "granite", "gpt_neox", "starcoder2"])
def test_the_repaired_model_does_what_the_map_promises(name: str, tmp_path: Path) -> None:
    """Behind the cut it gives r + M m, which is nearer to the base's state than h = r + m."""
    base = write_family(tmp_path, name, torch.float32)["base"]
    composer, pruned = composer_over(base), stack(base, [0, 1, 2, 5, 6, 7], dtype="float32")
    (cut,) = cuts_of(pruned, DEPTH)
    moments = climb_of(composer, pruned, [Batch(IDS, ())]).moments(pruned, cut)
    file, digest = save_map(moments.solve(1e-6), tmp_path, "m.safetensors")
    repaired = with_edit(pruned, cut.slot, Edit(MLP, digest, str(file)))
    h, rest = hidden(composer, pruned, 2), hidden(composer, with_edit(pruned, 2, Edit(MLP)), 2)
    y = hidden(composer, stack(base, list(range(DEPTH))), 4)
    promised = rest + (h - rest) @ moments.solve(1e-6).T
    after = hidden(composer, repaired, 2)
    torch.testing.assert_close(after, promised, rtol=1e-4, atol=1e-4)
    assert (y - after).square().sum() < (y - h).square().sum()


def test_where_nothing_is_missing_the_map_is_the_identity(tmp_path: Path) -> None:
    base = write_family(tmp_path, "llama", torch.float32)["base"]
    composer = composer_over(base)
    pruned = stack(base, [0, 1, 2, 3])
    cut = Cut(2, range(3, 3))
    moments = climb_of(composer, pruned, [Batch(IDS, ())]).moments(pruned, cut)
    torch.testing.assert_close(moments.solve(1e-3), torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)
