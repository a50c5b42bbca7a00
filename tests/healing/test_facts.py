"""The file beside a healed recipe: it comes back, names no path, and is worth nothing without an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptailor_merge.errors import ConfigError
from gptailor_merge.healing.facts import FACTS, HealingFacts, facts_on
from gptailor_merge.recipe.recipe import GlobalParameters, Recipe

PLAIN = Recipe(base_model="org/base", slices=())
HEALED = Recipe(
    base_model="org/base", slices=(), parameters=GlobalParameters(adapter="adapter", adapter_digest="0")
)
LORA = {
    "method": "lora",
    "texts": {"stories": "12ab", "/home/alice/sums": "34cd", "maths": "56ef"},
    "tokens": 1_500_000,
    "seconds": 61.7,
    "device": "NVIDIA H200",
    "teachers": {"stories": "stories", "/home/alice/sums": "C:\\models\\base", "maths": "base"},
    "rank": 8,
    "steps": 12,
}


def test_facts_come_back_and_are_said_in_a_sentence(tmp_path: Path) -> None:
    facts = HealingFacts.model_validate(LORA)
    facts.write(tmp_path)
    assert facts_on(HEALED, tmp_path) == facts
    assert facts_on(PLAIN, tmp_path) is None
    assert facts_on(HEALED, tmp_path / "absent") is None
    assert facts.sentence() == (
        "The adapter was trained on 1,500,000 tokens of stories, sums, maths, taught by stories "
        "(stories) and base (sums, maths), in 62 s on NVIDIA H200"
    )
    assert facts.to_public() == {
        "method": "lora",
        "texts": {"stories": "12ab", "sums": "34cd", "maths": "56ef"},
        "tokens": 1_500_000,
        "seconds": 61.7,
        "device": "NVIDIA H200",
        "teachers": {"stories": "stories", "sums": "base", "maths": "base"},
        "rank": 8,
    }


def test_generated_answers_are_said_in_the_sentence(tmp_path: Path) -> None:
    facts = HealingFacts.model_validate({**LORA, "generation": {"gsm8k": (0.02, 0.215)}})
    facts.write(tmp_path)
    assert facts_on(HEALED, tmp_path) == facts
    end = "; generated answers that match exactly changed in gsm8k from 2.0% to 21.5%"
    assert facts.sentence().endswith(f" in 62 s on NVIDIA H200{end}")
    assert facts.to_public()["generation"] == {"gsm8k": (0.02, 0.215)}


def test_teachers_in_8_bits_are_said_in_the_sentence(tmp_path: Path) -> None:
    facts = HealingFacts.model_validate({**LORA, "teachers_in_8bit": True})
    facts.write(tmp_path)
    assert facts_on(HEALED, tmp_path) == facts
    assert " and base (sums, maths), in 8 bits, in 62 s" in facts.sentence()
    assert "teachers_in_8bit" not in HealingFacts.model_validate(LORA).to_public()


def test_a_model_whose_weights_were_all_trained_has_no_adapter(tmp_path: Path) -> None:
    HealingFacts(method="full", texts={"sums": "0"}, tokens=9, seconds=2.0, device="cpu").write(tmp_path)
    facts = facts_on(PLAIN, tmp_path)
    assert facts is not None
    assert facts.sentence() == "All weights were trained on 9 tokens of sums in 2 s on cpu"
    assert "rank" not in json.loads((tmp_path / FACTS).read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dora"}, "method: "),
        ({"tokens": -1}, "tokens: "),
        ({"generation": {"gsm8k": [0.5, 2]}}, "generation.gsm8k[1]: "),
        ({"texts": ["a"]}, "texts: "),
        ({"rank": None, "device": 3}, "device: "),
    ],
)
def test_a_file_of_another_form_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text(json.dumps({**LORA, **change}))
    with pytest.raises(ConfigError) as caught:
        facts_on(HEALED, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / FACTS}:1: {message}")
    (tmp_path / FACTS).write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        facts_on(HEALED, tmp_path)
