"""Contract tests of objectives, to be inherited by whoever adds one.

    class TestEntropy(KindContract):
        @pytest.fixture
        def document(self, texts):
            return {"kind": "entropy", "data": texts, "tokens": 64, "sequence_length": 16}

        @pytest.fixture
        def changed(self, document):
            return {**document, "tokens": 32}

The fixtures `texts`, `model`, `tokenizer`, `directory` and `context` come with the suite: a tiny Llama whose
tokenizer knows the characters from space to underscore. Any of them can be given anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.calibration.batches import RUNGS, Batch, layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.models.loading import load_tokenizer
from gptailor_merge.objectives.kinds import Context, ObjectiveConfig
from gptailor_merge.objectives.protocols import Forward, ModelObjective, Objective, Prediction, UnitSet
from gptailor_merge.objectives.registry import KINDS
from gptailor_merge.objectives.scores import COSTS, UNITS, Score
from gptailor_merge.scoring.passes import Measured, Passes, predictions_alone
from gptailor_merge.scoring.racing import loss_of
from gptailor_merge.testing.tiny_models import write_member

Make = Callable[[int], Objective]
"""Makes an objective: version 0, or version 1 with other data or settings."""


CPU = torch.device("cpu")


def layered(objective: Objective, batch_tokens: int, shares: tuple[float, ...]) -> Passes:
    """Lays out the batches of a single objective.

    Args:
        shares: of the units that are scored at the end of each rung.
    """
    token_sets = [units for units in objective.sets if isinstance(units, TokenSet)]
    return Passes([objective], layout(token_sets, batch_tokens, device=CPU, rungs=shares), shares)


class ObjectiveContract:
    """The promises of every objective, however it was made. Give the fixture `make`."""

    @pytest.fixture
    def make(self) -> Make:
        """Makes the objective under test."""
        raise NotImplementedError("give a fixture `make` that returns a function of the version")

    @pytest.fixture
    def has_versions(self) -> bool:
        """False for an objective that depends on nothing but the model."""
        return True

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """The directory of a model, in float32."""
        return write_member(tmp_path / "base", 0, dtype=torch.float32)

    @pytest.fixture
    def tokenizer(self, directory: Path) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(directory)

    @pytest.fixture
    def model(self, directory: Path) -> PreTrainedModel:
        """The model that is scored."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory)
        return model

    def test_it_is_measured_on_predictions_or_on_models(self, make: Make) -> None:
        """An objective is one or the other, and its sets are of that sort."""
        objective = make(0)
        assert isinstance(objective, ModelObjective) != hasattr(objective, "values")
        assert objective.sets
        sorts = {isinstance(units, UnitSet) for units in objective.sets}
        assert sorts == {isinstance(objective, ModelObjective)}

    def test_the_fingerprint_depends_on_the_data(self, make: Make, has_versions: bool) -> None:
        """Made twice it is the same; with other data or settings it is another."""
        first, again = make(0), make(0)
        assert first.fingerprint == again.fingerprint
        assert [units.digest for units in first.sets] == [units.digest for units in again.sets]
        if has_versions:
            assert first.fingerprint != make(1).fingerprint

    def test_rungs_and_batches_do_not_matter(self, make: Make, model: PreTrainedModel) -> None:
        """A set has as many values as units, and the same ones however it is cut."""
        objective = make(0)
        ways = []
        for batch_tokens, shares in ((4096, (1.0,)), (64, RUNGS), (7, (0.3, 0.31, 1.0))):
            passes = layered(objective, batch_tokens, shares)
            for number, measured in enumerate(passes.measure_by_rungs(model)):
                for units in objective.sets:
                    if isinstance(units, UnitSet):
                        so_far = np.concatenate(measured[objective.name, units.name])
                        assert len(so_far) == units.units_until(shares[number])
            ways.append({name: np.concatenate(parts) for (_, name), parts in measured.items()})
        for name, values in ways[0].items():
            assert len(values) == next(units.units for units in objective.sets if units.name == name)
            for way in ways[1:]:
                assert way[name] == pytest.approx(values, rel=1e-4, abs=1e-5)

    def test_a_score_is_the_sum_of_the_units_over_their_size(self, make: Make) -> None:
        """This holds for the first units as for all; and so do they add to a loss."""
        objective = make(0)
        passes = layered(objective, 64, RUNGS)
        for units in objective.sets:
            for count in {1, units.units}:
                values = np.linspace(1.0, 2.0, count)
                score = objective.score(units.name, values)
                assert score.count == objective.size(units.name, count)
                assert score.mean == pytest.approx(values.sum() / objective.size(units.name, count))
        measured: Measured = {
            (objective.name, units.name): [np.linspace(1.0, 2.0, units.units)] for units in objective.sets
        }
        total = Score.total(list(passes.scores(measured)[objective.name].values()))
        assert loss_of(passes.units(measured, {objective.name: 2.0})) == pytest.approx(2 * total.mean)
        assert passes.units(measured, {}) == {}

    def test_lower_is_better(self, make: Make) -> None:
        """This holds for the mean; users see a number that goes the way that the direction says."""
        objective = make(0)
        (name, *_) = (units.name for units in objective.sets)
        less, more = (objective.score(name, np.full(1, value)) for value in (0.25, 0.5))
        assert less.unit in UNITS
        assert objective.direction in ("minimize", "maximize")
        if objective.direction == "maximize":
            assert less.natural > more.natural
        else:
            assert less.natural < more.natural


class KindContract(ObjectiveContract):
    """The promises of every kind. Give the fixtures `document` and `changed`."""

    @pytest.fixture
    def document(self) -> dict[str, Any]:
        """An objective of this kind as a search config has it, with absolute paths."""
        raise NotImplementedError("give a fixture `document`, an entry of `objectives` in a search config")

    @pytest.fixture
    def changed(self) -> dict[str, Any] | None:
        """The same with other data or settings; None for a kind without any."""
        raise NotImplementedError("give a fixture `changed`; it may return None")

    @pytest.fixture
    def has_versions(self, changed: dict[str, Any] | None) -> bool:
        """True where there is something to change."""
        return changed is not None

    @pytest.fixture
    def texts(self, tmp_path: Path) -> dict[str, str]:
        """Two files of texts, as the key `data` takes them."""
        directory = tmp_path / "texts"
        directory.mkdir()
        files = {}
        for name, words in (("stories", "ONCE UPON A TIME"), ("sums", "1+2=3; 40*2=80?")):
            lines = (json.dumps({"text": words[n:] + words[:n]}) for n in range(len(words)))
            (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            files[name] = str(directory / f"{name}.jsonl")
        return files

    @pytest.fixture
    def context(self, directory: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Context:
        """A run whose only member is the model; as a teacher it is surer of itself than as a candidate."""

        def surer(batch: Batch) -> Iterator[Prediction]:
            for prediction in predictions_alone(model, batch):
                doubled = 2 * prediction.log_probabilities
                yield prediction._replace(log_probabilities=doubled.log_softmax(-1))

        def teacher(name: str) -> tuple[str, Forward]:
            return f"teacher {name}", surer

        return Context(tokenizer, directory, teacher, CPU, torch.bfloat16)

    @pytest.fixture
    def config(self, document: dict[str, Any]) -> ObjectiveConfig:
        """The document as a search config reads it."""
        return config_of(document)

    @pytest.fixture
    def make(self, document: dict[str, Any], changed: dict[str, Any] | None, context: Context) -> Make:
        """Builds the objective as a run does."""

        def build(version: int) -> Objective:
            return built(config_of((changed or document) if version else document), context)

        return build

    def test_the_kind_is_known(self, document: dict[str, Any]) -> None:
        """The registry knows it, so that messages name it."""
        assert document["kind"] in KINDS

    def test_a_run_records_it(self, config: ObjectiveConfig) -> None:
        """A recorded config is read back as the same."""
        assert config_of(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config

    def test_an_unknown_key_is_an_error(self, document: dict[str, Any], tmp_path: Path) -> None:
        """The message names the key and its line."""
        text = yaml.safe_dump(search_document({**document, "no_such_key": 1}), sort_keys=False)
        (tmp_path / "search.yml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"objectives\[0\]\.no_such_key: unknown key"):
            SearchConfig.load(tmp_path / "search.yml")

    def test_it_has_nothing_to_complain_of(self, config: ObjectiveConfig, tmp_path: Path) -> None:
        """Its paths exist, and as absolute paths they do not change."""
        assert config.problems(("objectives", 0), tmp_path, ("base",)) == []
        assert config.resolved(tmp_path) == config

    def test_it_describes_itself(self, config: ObjectiveConfig) -> None:
        """The card has a line for it, without a full stop."""
        sentence = config.describe()
        assert sentence
        assert "\n" not in sentence
        assert not sentence.endswith(".")

    def test_it_can_be_a_gate(self, document: dict[str, Any], config: ObjectiveConfig) -> None:
        """A gate has the kind's keys and a limit, and describes both."""
        (gate,) = SearchConfig.model_validate(
            {**search_document(document), "gates": [{**document, "at_most": "1.5 x base"}]}
        ).gates
        assert isinstance(gate, type(config))
        assert gate.threshold(of_base=2.0) == 3.0
        assert gate.describe() == f"{config.describe()}; at most 1.5 x base"

    def test_it_is_built_under_any_name(self, config: ObjectiveConfig, context: Context, make: Make) -> None:
        """Sets and metric are known before, and the name changes nothing else."""
        prepared = config.prepare(context)
        objective, renamed = make(0), built(config, context, "gate: other")
        assert (objective.name, renamed.name) == (prepared.metric, "gate: other")
        assert objective.fingerprint == renamed.fingerprint
        assert [(s.name, s.digest) for s in prepared.sets] == [(s.name, s.digest) for s in objective.sets]
        assert config.has_items == bool(prepared.items)

    def test_it_is_comparable_with_itself(self, config: ObjectiveConfig, make: Make) -> None:
        """Its answer on every set can be compared and hashed."""
        for units in make(0).sets:
            assert config.comparable_on(units.name) == config.comparable_on(units.name)
            hash(config.comparable_on(units.name))

    def test_scores_are_finite(self, config: ObjectiveConfig, make: Make, model: PreTrainedModel) -> None:
        """Costs have a unit of costs, and other objectives do not."""
        objective = make(0)
        scores = layered(objective, 64, RUNGS).score(model)[objective.name]
        assert all(math.isfinite(score.natural) for score in scores.values())
        assert {score.unit in COSTS for score in scores.values()} == {config.is_cost}


def search_document(objective: dict[str, Any]) -> dict[str, Any]:
    """Returns the smallest search config with an objective."""
    return {"family": {"base": "base"}, "target": {"layers": 1}, "objectives": [objective]}


def config_of(objective: dict[str, Any]) -> ObjectiveConfig:
    """Reads an objective as a search config does."""
    (config,) = SearchConfig.model_validate(search_document(objective)).objectives
    return config


def built(config: ObjectiveConfig, context: Context, name: str | None = None) -> Objective:
    """Builds an objective as a run does; by default it is called by its metric."""
    prepared = config.prepare(context)
    token_sets = [units for units in prepared.sets if isinstance(units, TokenSet)]
    batches = [batch for rung in layout(token_sets, 64, device=CPU) for batch in rung]
    return prepared.build(name or prepared.metric, batches)
