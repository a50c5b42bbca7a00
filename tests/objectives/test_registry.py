"""Kinds of other packages: one file and an entry point each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor_merge.config import SearchConfig
from gptailor_merge.errors import ConfigError
from gptailor_merge.hub.objective_sentences import described
from gptailor_merge.models.family import Family
from gptailor_merge.models.loading import load_model, load_tokenizer
from gptailor_merge.objectives.registry import KINDS, config_class
from gptailor_merge.scoring.measures import measures
from gptailor_merge.scoring.teachers import Teachers
from gptailor_merge.testing.objectives import KindContract
from tests.packages import install

ENTROPY = '''
"""A new objective on texts: how unsure a model is of the next token."""
from dataclasses import dataclass
from typing import Literal
from gptailor_merge.digests import digest
from gptailor_merge.objectives.protocols import PerToken
from gptailor_merge.objectives.text_kinds import TextConfig

class EntropyConfig(TextConfig):
    kind: Literal["entropy"]

    def build(self, name, sets, batches, context):
        return Entropy(name, sets)

    def sentence(self):
        return f"entropy on {self.data_in_words()}; {self.size_in_words()}"

@dataclass(frozen=True)
class Entropy(PerToken):
    name: str
    sets: tuple
    direction: str = "minimize"

    @property
    def fingerprint(self):
        return digest(["entropy", [(s.name, s.digest) for s in self.sets]])

    def values(self, set_name, prediction):
        log_p = prediction.log_probabilities
        return -(log_p.exp() * log_p).sum(-1)
'''

WORDS = '''
"""An objective of a new shape: how often a model writes a letter after prompts of its own."""
from dataclasses import dataclass
from typing import Literal
import numpy as np
import torch
from pydantic import Field
from gptailor_merge.digests import digest
from gptailor_merge.objectives.kinds import ObjectiveConfig, PreparedObjective, Weight
from gptailor_merge.objectives.protocols import PerUnit, UnitSet

class LettersConfig(ObjectiveConfig):
    kind: Literal["letters"]
    letter: str = Field(min_length=1)
    prompts: tuple[str, ...] = Field(min_length=1, strict=False)
    weight: Weight = 1.0

    def prepare(self, context):
        ids = tuple(tuple(context.tokenizer(text)["input_ids"]) for text in self.prompts)
        sets = (UnitSet("prompts", digest([self.letter, ids]), len(ids), frozenset(self.prompts)),)
        token = context.tokenizer(self.letter)["input_ids"][0]
        return PreparedObjective.ready(Letters("letters", sets, ids, token))

    def sentence(self):
        return f"how often {self.letter!r} follows {len(self.prompts)} prompts"

@dataclass(frozen=True)
class Letters(PerUnit):
    name: str
    sets: tuple
    ids: tuple
    token: int
    direction: str = "minimize"

    @property
    def fingerprint(self):
        return digest(["letters", self.token, self.ids])

    def measure(self, set_name, model, first, stop):
        probabilities = [model(torch.tensor([ids])).logits[0, -1].softmax(-1) for ids in self.ids[first:stop]]
        return np.array([float(one[self.token]) for one in probabilities])
'''

DEPTH = '''
"""A cost: the number of layers."""
from dataclasses import dataclass
from typing import Literal
from gptailor_merge.digests import digest
from gptailor_merge.objectives.costs import CostConfig, CostPerModel

class DepthConfig(CostConfig):
    kind: Literal["depth"]

    def cost(self, context):
        return Depth(self.kind)

@dataclass(frozen=True)
class Depth(CostPerModel):
    name: str
    unit = "count"

    @property
    def fingerprint(self):
        return digest(["depth"])

    def of(self, model):
        return len(model.base_model.layers)
'''

LACKING = '''
"""A kind that does not say how it is built, and one without a weight."""
from typing import Literal
from gptailor_merge.objectives.kinds import ObjectiveConfig
from gptailor_merge.objectives.text_kinds import TextConfig

class SilentConfig(TextConfig):
    kind: Literal["silent"]

    def sentence(self):
        return "silence"

class WeightlessConfig(ObjectiveConfig):
    kind: Literal["weightless"]

    def prepare(self, context):
        pass

    def sentence(self):
        return "no weight"
'''

FILES = {
    "entropy": ENTROPY,
    "letters": WORDS,
    "depth": DEPTH,
    "lacking": LACKING,
    "broken": "import no_such_module",
}
ENTRIES = {
    "entropy": "outside_entropy:EntropyConfig",
    "letters": "outside_letters:LettersConfig",
    "depth": "outside_depth:DepthConfig",
    "silent": "outside_lacking:SilentConfig",
    "weightless": "outside_lacking:WeightlessConfig",
    "broken": "outside_broken:BrokenConfig",
    "strange": "json:JSONEncoder",
}


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed, and in no tree of ours."""
    lines = "".join(f"{name} = {value}\n" for name, value in ENTRIES.items())
    modules = {f"outside_{name}": text for name, text in FILES.items()}
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)
    site = install(tmp_path / "site", "outside", f"[gptailor_merge.objectives]\n{lines}", modules)
    monkeypatch.syspath_prepend(site)


class TestOutside(KindContract):
    """Kinds of other packages inherit the contract."""

    @pytest.fixture(params=["entropy", "letters", "depth"])
    def document(self, request: Any, texts: dict[str, str]) -> dict[str, Any]:
        keys = {
            "entropy": {"data": texts, "tokens": 64, "sequence_length": 16},
            "letters": {"letter": "A", "prompts": ["ONCE", "UPON"]},
            "depth": {},
        }
        return {"kind": request.param, **keys[request.param]}

    @pytest.fixture
    def changed(self, document: dict[str, Any]) -> dict[str, Any] | None:
        keys = {"entropy": {"tokens": 32}, "letters": {"letter": "B"}, "depth": None}[document["kind"]]
        return {**document, **keys} if keys else None


def config(**top: Any) -> SearchConfig:
    return SearchConfig.model_validate({"family": {"base": "base"}, "target": {"layers": 3}, **top})


def test_a_run_measures_reports_and_describes_them(
    family: dict[str, str], texts: dict[str, str], tmp_path: Path
) -> None:
    """A run pairs them with held-out counterparts, fits repairs to their texts and puts them on the card."""
    others = tmp_path / "others.jsonl"
    others.write_text("".join(json.dumps({"text": f"{n} OTHERS {n}"}) + "\n" for n in range(20)))
    on_texts = {"kind": "entropy", "tokens": 64, "sequence_length": 16}
    on_letters = {"kind": "letters", "letter": "A", "prompts": ["ONCE"]}
    settings = config(
        family={"base": family["base"]},
        objectives=[{**on_texts, "data": texts}, on_letters, {"kind": "depth"}],
        gates=[{"kind": "depth", "at_most": 5}],
        held_out=[{**on_texts, "data": {"sums": str(others)}}, {**on_letters, "prompts": ["TWICE"]}],
    )
    assert settings.pareto  # the cost has no weight
    loaded = Family.load(family["base"], {})
    cpu = torch.device("cpu")
    tokenizer = load_tokenizer(Path(family["base"]))
    measured = measures(settings, tokenizer, Teachers(loaded, cpu, torch.float32), torch.float32)
    assert [objective.name for objective in measured.searched.objectives] == ["entropy", "letters", "depth"]
    assert [objective.name for objective in measured.gates.objectives] == ["gate: depth"]
    assert [(pair.searched, pair.held_out, pair.sets) for pair in measured.pairs] == [
        ("entropy", "entropy", ("sums",)),
        ("letters", "letters", ("prompts",)),
    ]
    assert [text.name for text in measured.texts] == ["stories", "sums"]
    scores = measured.searched.score(load_model(Path(family["base"]), torch.float32, cpu))
    assert scores["depth"]["model"].natural == 5
    assert 0 < scores["letters"]["prompts"].natural < 1
    assert described("objectives", settings.objectives, (), {}) == [
        "entropy on stories (stories.jsonl), sums (sums.jsonl); 64 tokens in all, in sequences of 16",
        "how often 'A' follows 1 prompts",
        "depth",
    ]
    assert described("gates", settings.gates, (), {}) == ["depth; at most 5.0"]


def test_a_leak_into_what_is_held_out_is_found(family: dict[str, str]) -> None:
    on_letters = {"kind": "letters", "letter": "A", "prompts": ["ONCE"]}
    settings = config(family={"base": family["base"]}, objectives=[on_letters], held_out=[on_letters])
    teachers = Teachers(Family.load(family["base"], {}), torch.device("cpu"), torch.float32)
    tokenizer = load_tokenizer(Path(family["base"]))
    with pytest.raises(ConfigError, match=r"held_out\[0\]\.prompts: 1 of 1 documents are also searched on"):
        measures(settings, tokenizer, teachers, torch.float32)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "broken",
            "found 'broken', but the kind 'broken' of outside cannot be imported from outside_broken:BrokenConfig: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "silent",
            "found the kind 'silent', which does not implement build",
        ),
        (
            "weightless",
            "found the kind 'weightless', which has no key `weight`",
        ),
        (
            "strange",
            "found the kind 'strange', which is no subclass of gptailor_merge.objectives.kinds.ObjectiveConfig",
        ),
    ],
)
def test_a_kind_that_lacks_something_is_an_error(kind: str, message: str, tmp_path: Path) -> None:
    """A sentence says so when the kind is asked for; the others are there as before."""
    (tmp_path / "search.yml").write_text(
        f"family: {{base: base}}\ntarget: {{layers: 3}}\nobjectives: [{{kind: {kind}}}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        SearchConfig.load(tmp_path / "search.yml")
    assert str(caught.value) == f"{tmp_path / 'search.yml'}:3: objectives[0]: {message}"
    assert config(objectives=[{"kind": "depth"}]).objectives[0].is_cost


def test_a_kind_that_nobody_knows_is_an_error_that_names_all() -> None:
    assert set(KINDS) > {"kl", "task", *ENTRIES}
    with pytest.raises(
        ValueError, match=r"expected a mapping with a kind of kl, .*, letters, .*found 'none'"
    ):
        config_class("none")
