"""Gradients of merge weights and gains are those of the whole loss, and a fit ends where it was best."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TextSource, TokenSet, tokenize
from gptailor_merge.composing.bank import Bank, Precision
from gptailor_merge.composing.compose import Composer
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import Prediction
from gptailor_merge.planning.resolve import plan
from gptailor_merge.recipe.plan import Plan
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.passes import Passes
from gptailor_merge.tuning import checkpoint, embeddings_and_head, fitting
from gptailor_merge.tuning.checkpoint import Checkpoint
from gptailor_merge.tuning.fitting import Fit, fit
from gptailor_merge.tuning.tunable_model import TunableModel
from tests.conftest import MakeFamily, recipe_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def members(make_family: MakeFamily, request: pytest.FixtureRequest) -> dict[str, str]:
    return make_family(dtype=torch.float32, tied=request.param)


@pytest.fixture(scope="module")
def sets(members: dict[str, str], texts: dict[str, str]) -> tuple[TokenSet, ...]:
    tokenizer = load_tokenizer(Path(members["base"]))
    return tuple(
        tokenize(name, TextSource(file), tokenizer, tokens=64, sequence_length=16)
        for name, file in texts.items()
    )


@pytest.fixture(scope="module")
def passes(sets: tuple[TokenSet, ...]) -> Passes:
    """Texts of two sets in one batch, so that their rows share logits."""
    return Passes([Perplexity("nll", sets)], layout(sets, 4096, device=CPU, rungs=(1.0,)), (1.0,))


@pytest.fixture(scope="module")
def recipe(members: dict[str, str]) -> Plan:
    """A selected layer, a removed one, and two merged by ties, which is linear in nothing."""
    merge = {
        "sources": [
            {"model": members["math"], "layer_range": [2, 4], "parameters": {"weight": 0.6}},
            {"model": members["code"], "layer_range": [2, 4], "parameters": {"weight": 0.4}},
        ],
        "parameters": {"op": "merge", "method": "ties", "density": 0.5},
    }
    return plan(Recipe.from_mapping(recipe_of(members, merge)))


@pytest.fixture
def model(members: dict[str, str], recipe: Plan) -> TunableModel:
    family = Family.load(members["base"], {name: members[name] for name in ("math", "code")})
    return TunableModel(Composer(Bank(family, Precision())), recipe, "tensor", norms=True, outer=True)


def test_gradients_are_those_of_the_loss_over_all_tokens(
    model: TunableModel, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made again without checkpoints and pieces, by transformers' own forward and cross-entropy."""
    (batch,) = passes.batches
    monkeypatch.setattr(embeddings_and_head, "PIECE", 64)
    fitting._differentiate(model, passes.objectives, [batch], {"nll": 2.0})
    mine = [parameter.grad for parameter in (*model.weights, *model.gains)]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in mine)
    whole: dict[str, torch.Tensor] = {}
    body, tied = model.model.base_model, len(model.components) == 1
    body.embed_tokens = body.embed_tokens._layer
    model.model.lm_head = model.model.lm_head._layer
    embeddings = whole["model.embed_tokens.weight"] = model.components[0].merged("model.embed_tokens.weight")
    whole["lm_head.weight"] = embeddings if tied else model.components[-1].merged("lm_head.weight")
    for position, layer in enumerate(model.layers):
        whole |= {f"model.layers.{position}.{name}": t for name, t in layer.merged().items()}
        body.layers[position] = layer._layer
    logits = functional_call(model.model, whole, kwargs={"input_ids": batch.ids, "use_cache": False}).logits
    loss = 2 * torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten())
    theirs = torch.autograd.grad(loss, [*model.weights, *model.gains])
    for got, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_the_model_starts_as_the_recipe_where_that_is_linear(members: dict[str, str], passes: Passes) -> None:
    linear = plan(Recipe.from_mapping(recipe_of(members)))
    family = Family.load(members["base"], {name: members[name] for name in ("math", "code")})
    composer = Composer(Bank(family, Precision()))
    model = TunableModel(composer, linear, "layer", norms=True, outer=True)
    measured = passes.scores(passes.measure_with(model.predictions))["nll"]
    for name, score in passes.score(composer.compose(linear))["nll"].items():
        assert measured[name].mean == pytest.approx(score.mean, abs=1e-5)


def test_a_fit_ends_where_the_texts_held_back_were_best(model: TunableModel, passes: Passes) -> None:
    said: list[str] = []
    result = fit(model, passes, passes, {"nll": 1.0}, steps=12, rate=0.05, progress=said.append)
    assert result.after < result.before - 0.05
    assert 0 < result.steps <= 12
    now = passes.scores(passes.measure_with(model.predictions))["nll"]
    means = [score.mean * score.count for score in now.values()]
    assert sum(means) / sum(score.count for score in now.values()) == pytest.approx(result.after)
    assert said[0].startswith(
        f"tuning {76 if len(model.components) == 1 else 78} merge weights, 144 gains, at most 12 steps: loss "
    )
    assert re.match(r"tuning, step 1 of 12, about [0-9]+ s left: loss [0-9.]+, before [0-9.]+$", said[1])
    assert result.tokens == passes.tokens * (3 * (len(said) - 1) + len(said))


class Forgetting(Perplexity):
    """Falls when texts are predicted worse."""

    def values(self, set_name: str, prediction: Prediction) -> torch.Tensor:
        return -super().values(set_name, prediction)


def test_a_fit_that_only_harms_leaves_the_model_as_it_was(
    model: TunableModel, passes: Passes, sets: tuple[TokenSet, ...]
) -> None:
    before = [parameter.detach().clone() for parameter in (*model.weights, *model.gains)]
    worse = Passes([Forgetting("nll", sets)], passes.rungs, (1.0,))
    result = fit(model, worse, passes, {"nll": 1.0}, steps=8, rate=0.05)
    assert (result.steps, result.after) == (0, result.before)
    for parameter, value in zip((*model.weights, *model.gains), before, strict=True):
        assert torch.equal(parameter, value)


class KilledError(Exception):
    """Ends a fit as a kill does, but for the file that it leaves."""


def numbers_of(model: TunableModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in (*model.weights, *model.gains)]


@pytest.mark.parametrize("killed_at", [1, 4])
def test_a_killed_fit_goes_on_to_the_same_numbers(
    killed_at: int, model: TunableModel, passes: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    begun, file = numbers_of(model), tmp_path / "state"

    def run(kept: Checkpoint | None, say: Callable[[str], None] = lambda text: None) -> Fit:
        with torch.no_grad():
            for parameter, value in zip((*model.weights, *model.gains), begun, strict=True):
                parameter.copy_(value)
        return fit(model, passes, passes, {"nll": 1.0}, steps=6, rate=0.3, progress=say, checkpoint=kept)

    def kill(text: str) -> None:
        if text.startswith(f"tuning, step {killed_at + 1} "):
            raise KilledError

    undisturbed = run(None), numbers_of(model)
    with pytest.raises(KilledError):
        run(Checkpoint(file, "a"), kill)
    said: list[str] = []
    resumed = run(Checkpoint(file, "a"), said.append), numbers_of(model)
    assert said[1].startswith(f"tuning, step {killed_at + 1} of 6")
    assert resumed[0] == undisturbed[0]
    assert all(map(torch.equal, resumed[1], undisturbed[1]))
    # What is of another fit, or broken, counts for nothing.
    states = [file.read_bytes(), b"", file.read_bytes()[:-3], b"\xff" * 100]
    for content, key in zip(states, ("b", "a", "a", "a"), strict=True):
        file.write_bytes(content)
        assert not fitting._Course(model, 0.3).resume(Checkpoint(file, key))
