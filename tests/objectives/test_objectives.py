from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor_merge.calibration.batches import RUNGS, Batch, Segment, layout
from gptailor_merge.calibration.texts import TextSource, TokenSet
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.costs import CostKind, cost
from gptailor_merge.objectives.kl import build_kl, kl_divergence, reference
from gptailor_merge.objectives.perplexity import Perplexity
from gptailor_merge.objectives.protocols import ModelObjective, Objective, Prediction, UnitSet, log_likelihood
from gptailor_merge.objectives.repetition import repetition
from gptailor_merge.objectives.scores import Score
from gptailor_merge.objectives.tasks.harness import encoder
from gptailor_merge.objectives.tasks.likelihood import objective as tasks_objective
from gptailor_merge.objectives.tasks.task_items import TaskSettings, load_items
from gptailor_merge.scoring.passes import Passes, Values, extend, predictions_alone
from gptailor_merge.scoring.racing import loss_of
from tests.conftest import MakeFamily

CPU = torch.device("cpu")
IDS = torch.arange(12).reshape(2, 6) % 9


def logits(seed: int, vocabulary: int = 40, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed))


def predicted(made: torch.Tensor) -> Prediction:
    rows = range(len(made))
    return Prediction.of(Segment("digest", rows, rows), IDS[: len(made), 1 : 1 + made.shape[1]], made)


def kl_of(p: torch.Tensor, q: torch.Tensor, top_k: int) -> float:
    return float(kl_divergence(reference(predicted(p), top_k), predicted(q)).double().sum())


def full_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    log_p, log_q = (functional.log_softmax(x.double(), -1) for x in (p, q))
    return float((log_p.exp() * (log_p - log_q)).sum())


def test_likelihood_is_of_the_next_token() -> None:
    values = -log_likelihood(predicted(logits(1)))
    for row, ids, found in zip(logits(1), IDS, values, strict=True):
        for position in range(5):
            expected = -float(functional.log_softmax(row[position], -1)[ids[position + 1]])
            assert float(found[position]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("top_k", [1, 8, 39, 40, 99])
def test_kl_of_a_model_with_itself_is_zero(top_k: int) -> None:
    assert kl_of(logits(1), logits(1), top_k) == 0.0


def test_kl_over_the_whole_vocabulary_is_exact() -> None:
    assert kl_of(logits(1), logits(2), 40) == pytest.approx(full_kl(logits(1), logits(2)), rel=1e-5)


@given(st.integers(0, 99), st.integers(1, 39))
def test_kl_of_the_top_is_a_lower_bound_that_grows(seed: int, top_k: int) -> None:
    p, q = logits(seed), logits(seed + 1000)
    coarse, finer = kl_of(p, q, top_k), kl_of(p, q, top_k + 1)
    assert -1e-4 <= coarse <= finer + 1e-3
    assert finer <= full_kl(p, q) + 1e-3


def test_a_reference_that_is_sure_of_itself_gives_finite_numbers() -> None:
    sure = torch.zeros(1, 3, 40)
    sure[..., 0] = 1000.0
    assert math.isfinite(kl_of(sure, torch.zeros(1, 3, 40), 4))
    assert math.isfinite(kl_of(torch.zeros(1, 3, 40), sure, 4))


def test_totals_weigh_by_tokens() -> None:
    assert Score.total([Score(1.0, 10), Score(4.0, 30)]) == Score(3.25, 40)
    assert Score(math.log(7.0), 1, "perplexity").natural == pytest.approx(7.0)


def token_set(name: str, seed: int) -> TokenSet:
    ids = torch.randint(0, 60, (9, 6), generator=torch.Generator().manual_seed(seed))
    return TokenSet(name, tuple(ids), f"digest {seed}")


@dataclass
class Material:
    """What objectives are made of."""

    model: PreTrainedModel
    tokenizer: Any
    lm: Any
    tasks: Path

    @property
    def texts(self) -> TextSource:
        file = self.tasks / "texts.jsonl"
        file.write_text("".join(f'{{"text": "{letter * 3}XYZ"}}\n' for letter in "ABCDEFGHI"))
        return TextSource(str(file))


def perplexity(material: Material, seed: int) -> Objective:
    return Perplexity("perplexity", (token_set("t", seed), token_set("u", seed + 10)))


def kl(material: Material, seed: int) -> Objective:
    def teacher(batch: Batch) -> Iterator[Prediction]:
        for segment, next_ids, logits, *_ in predictions_alone(material.model, batch):
            yield Prediction.of(segment, next_ids, 2 * logits)

    sets = (token_set("t", seed),)
    batches = [batch for rung in layout(sets, 64, device=CPU) for batch in rung]
    return build_kl("kl", sets, teachers={"t": ("teacher", teacher)}, top_k=4, batches=batches)


def task(name: str, metric: str | None) -> Callable[[Material, int], Objective]:
    def make(material: Material, seed: int) -> Objective:
        items = load_items(TaskSettings((name,), material.tasks, limit=9, seed=seed), material.lm)
        return tasks_objective(items, metric, trees=True, lm=material.lm, batch_size=2)

    return make


def repeats(material: Material, seed: int) -> Objective:
    sizes = {"prompts": 9 - seed, "prompt_tokens": 3, "new_tokens": 8, "batch_size": 2}
    return repetition("r", {"s": material.texts}, material.tokenizer, **sizes)


def costing(kind: CostKind) -> Callable[[Material, int], Objective]:
    def make(material: Material, seed: int) -> Objective:
        dtype = (torch.float32, torch.bfloat16)[seed]
        return cost(kind, kind, dtype=dtype, device=CPU, tokens=8 + seed)

    return make


KINDS: dict[str, Callable[[Material, int], Objective]] = {
    "perplexity": perplexity,
    "kl": kl,
    "choice": task("tiny_choice", "acc"),
    "margin": task("tiny_choice", "margin"),
    "rolling": task("tiny_rolling", None),
    "loglikelihood": task("tiny_loglikelihood", None),
    "generation": task("tiny_generation", None),
    "repetition": repeats,
    "parameters": costing("parameters"),
    "bytes": costing("bytes"),
    "kv_cache": costing("kv_cache"),
    "prefill_latency": costing("prefill_latency"),
    "decode_latency": costing("decode_latency"),
}
"""Objectives of each kind, measured on predictions or on models; another seed, other data."""


def passes(objective: Objective, batch_tokens: int = 64, shares: Sequence[float] = RUNGS) -> Passes:
    in_rows = [one for one in objective.sets if isinstance(one, TokenSet)]
    return Passes([objective], layout(in_rows, batch_tokens, device=CPU, rungs=shares), shares)


# lm-eval and what it imports warn of their own deprecations.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
class TestContract:
    """What every objective promises, of whichever kind."""

    @pytest.fixture
    def material(self, make_family: MakeFamily, tasks: Path) -> Material:
        directory = Path(make_family(dtype=torch.float32)["base"])
        tokenizer = load_tokenizer(directory)
        model = AutoModelForCausalLM.from_pretrained(directory)
        return Material(model, tokenizer, encoder(directory, tokenizer), tasks)

    def test_is_of_one_kind(self, make: Any, material: Material) -> None:
        """It is measured on predictions, or on a model, and says so."""
        made = make(material, 0)
        assert isinstance(made, ModelObjective) != hasattr(made, "values")
        kinds = {isinstance(one, UnitSet) for one in made.sets}
        assert kinds == {isinstance(made, ModelObjective)}

    def test_the_fingerprint_is_of_the_data(self, make: Any, material: Material) -> None:
        one, same, other = (make(material, seed) for seed in (0, 0, 1))
        assert one.fingerprint == same.fingerprint
        assert [s.digest for s in one.sets] == [s.digest for s in same.sets]
        depends = one.name != "parameters"  # which are all that there is to it
        assert (one.fingerprint != other.fingerprint) == depends

    def test_is_measured_in_any_rungs_and_batches(self, make: Any, material: Material) -> None:
        """As many units as its sets have, and the same ones however they are cut."""
        made = make(material, 0)
        found = []
        for batch_tokens, shares in ((4096, (1.0,)), (64, RUNGS), (7, (0.3, 0.31, 1.0))):
            run = passes(made, batch_tokens, shares)
            measured = run.nothing_measured()
            for number, rung in enumerate(run.rungs):
                values: Values = {}
                for batch in rung:
                    extend(values, run.measure(predictions_alone(material.model, batch)))
                run.finish(number, values, measured)
                run.measure_model(number, material.model, measured)
                for one in made.sets:
                    if isinstance(one, UnitSet):
                        so_far = np.concatenate(measured[made.name, one.name])
                        assert len(so_far) == one.units_until(shares[number])
            found.append({name: np.concatenate(units) for (_, name), units in measured.items()})
        for name, units in found[0].items():
            assert len(units) == next(one.units for one in made.sets if one.name == name)
            for other in found[1:]:
                assert other[name] == pytest.approx(units, rel=1e-4, abs=1e-5)

    def test_the_score_is_the_sum_of_the_units_over_their_size(self, make: Any, material: Material) -> None:
        """Of the first ones as of all; so is what they add to a loss."""
        made = make(material, 0)
        run = passes(made)
        for one in made.sets:
            for count in {1, one.units}:
                units = np.linspace(1.0, 2.0, count)
                score = made.score(one.name, units)
                assert score.count == made.size(one.name, count)
                assert score.mean == pytest.approx(units.sum() / made.size(one.name, count))
        measured = {(made.name, one.name): [np.linspace(1.0, 2.0, one.units)] for one in made.sets}
        total = Score.total(list(run.scores(measured)[made.name].values()))
        assert loss_of(run.units(measured, {made.name: 2.0})) == pytest.approx(2 * total.mean)
        assert run.units(measured, {}) == {}

    def test_lower_is_better(self, make: Any, material: Material) -> None:
        """Of the mean; users see a number that goes the way that the direction says."""
        made = make(material, 0)
        (name, *_) = (one.name for one in made.sets)
        less, more = (made.score(name, np.full(1, value)).natural for value in (0.25, 0.5))
        assert less > more if made.direction == "maximize" else less < more
