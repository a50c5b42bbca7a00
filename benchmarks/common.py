"""Gives all benchmarks the built-in family, its search configs, and settings small enough to try things."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import typer
from pydantic import BaseModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gptailor_merge import Plan, SearchConfig, Session, Space
from gptailor_merge.api.engine import Scores, means_of

DEMO = Path(__file__).resolve().parent.parent / "recipes" / "demo"
SEARCH = DEMO / "search.yml"
TASKS = DEMO / "tasks.yml"

Tiny = Annotated[
    bool, typer.Option("--tiny", help="Try the benchmark out in seconds; the figures say nothing.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="A file for the figures.")]
Config = Annotated[Path, typer.Option(help="The search config.")]

_LEAST = {"tokens": 512, "sequence_length": 32, "limit": 8, "new_tokens": 4}
_LEAST_SEARCH = {"budget": 8, "population": 4}

Section = TypeVar("Section", bound=BaseModel)


def least(section: Section) -> Section:
    """Returns a section of a search config with as little data as works."""
    known = type(section).model_fields
    return section.model_copy(update={name: value for name, value in _LEAST.items() if name in known})


def least_tune(tune: Section) -> Section:
    """Returns the section with one recipe that is tuned in one step."""
    return tune.model_copy(update={"finalists": 1, "steps": 1, "tokens": 512})


def least_writes(writes: Section) -> Section:
    """Returns the section with nothing to write."""
    return writes.model_copy(update={"tokens": 0})


def read_config(file: Path, *, tiny: bool = False) -> SearchConfig:
    """Reads a search config; a tiny one has few candidates and little data."""
    config = SearchConfig.load(file)
    if not tiny:
        return config
    return config.model_copy(
        update={
            "objectives": tuple(map(least, config.objectives)),
            "gates": tuple(map(least, config.gates)),
            "held_out": tuple(map(least, config.held_out)),
            "search": config.search.model_copy(update=_LEAST_SEARCH),
            "repair": least(config.repair).model_copy(update={"finalists": 1}),
            "tune": least_tune(config.tune) if config.tuned else config.tune,
            "writes": least_writes(config.writes),
        }
    )


def random_plans(session: Session, count: int, seed: int) -> list[Plan]:
    """Draws plans from the session's space."""
    rng = np.random.RandomState(seed)
    return [session.decode(session.space.random(rng)) for _ in range(count)]


def middle_block(space: Space) -> set[int]:
    """Returns the block of removable layers in the middle, as many as must go."""
    length = space.depth - space.sizes[0]
    begin = (len(space.removable) - length) // 2
    return set(space.removable[begin : begin + length])


def best_of(session: Session, plans: list[Plan]) -> Plan:
    """Returns the plan with the lowest loss on the calibration set."""
    return plans[int(np.argmin(session.losses(plans)))]


def held_out_losses(session: Session, plan: Plan) -> dict[str, float]:
    """Returns a plan's held-out loss on each text, and over all of them as "mean": nats per token."""
    (scores,) = session.held_out([plan])
    return losses_of(scores)


def losses_of(scores: Scores) -> dict[str, float]:
    """Returns the means of scores that have one objective."""
    (by_set,) = scores.values()
    return means_of(by_set)


def tiny_family(root: Path, depth: int = 6) -> None:
    """Writes a random base with two variants near it, and texts of two domains, laid out as the demo's."""
    alphabet = [chr(code) for code in range(32, 127)]
    core = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(alphabet)}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=" ", eos_token=" ")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": depth}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(alphabet), max_position_embeddings=512, **shape))
    for name in ("base", "stories", "maths"):
        model.save_pretrained(root / "family" / name)
        tokenizer.save_pretrained(root / "family" / name)
        for parameter in model.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    rng = random.Random(0)
    for kind in ("calibration", "held-out", "train"):
        (root / kind).mkdir(parents=True)
        for domain, letters in {"stories": alphabet[65:90], "maths": alphabet[16:32]}.items():
            lines = [json.dumps({"text": "".join(rng.choices(letters, k=64))}) for _ in range(32)]
            (root / kind / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
