"""What the engine is measured on: the built-in family, or random families of the shapes of real ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import SEARCH, least, middle_block, read_config
from transformers import AutoModelForCausalLM, LlamaConfig

from gptailor_merge import Family, Plan, Space, open_session
from gptailor_merge.api.engine import (
    Bank,
    Composer,
    Passes,
    Point,
    Precision,
    TokenSet,
    Values,
    Weights,
    build_kl,
    compute_dtype,
    layout,
    load_model,
    loss,
    plan_of,
    predictions_alone,
)

SHAPES = {
    "tiny": LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4
    ),
    "1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "7b": LlamaConfig(vocab_size=32000, num_hidden_layers=32),
    "7b-8": LlamaConfig(vocab_size=32000, num_hidden_layers=8),
}
"""Shapes of random families; 7b-8 has the first quarter of 7b's layers."""


SEQUENCES = {"tiny": (16, 64), "1b": (16, 2048), "7b": (8, 2048), "7b-8": (8, 2048)}
"""Shape -> calibration sequences and their length."""


CACHE_BYTES = 2 * 1024**3
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Setup:
    """The models, the data and the dtypes that all arms share."""

    family: Family
    space: Space
    passes: Passes
    weights: Weights
    precision: Precision
    device: torch.device
    loaded: list[Bank]

    def composer(self, cache_bytes: int = CACHE_BYTES) -> Composer:
        """Makes a composer with a bank of its own: no arm profits from what another has merged."""
        if not self.loaded:
            self.loaded.append(Bank(self.family, self.precision, device=self.device))
            self.loaded[0].preload()
        return Composer(self.loaded[0].with_empty_cache(cache_bytes))

    def on_host(self) -> Composer:
        """Makes a composer whose family stays in the host's memory."""
        bank = Bank(self.family, self.precision, device=self.device, on_host=True, cache_bytes=CACHE_BYTES)
        bank.preload()
        return Composer(bank)

    def loss(self, values: Values) -> float:
        """Returns the loss from the values of all batches."""
        measured = {key: [torch.cat(parts).double().cpu().numpy()] for key, parts in values.items()}
        return loss(self.passes.scores(measured), self.weights)


def demo(device: torch.device, tokens: int | None) -> Setup:
    """Sets up the built-in family with a number of calibration tokens, or as few as work."""
    config = read_config(SEARCH)
    (objective,) = config.objectives
    objective = least(objective) if tokens is None else objective.model_copy(update={"tokens": tokens})
    searched_only = config.model_copy(update={"objectives": (objective,), "held_out": ()})
    session = open_session(searched_only, device=str(device))
    passes = session.workplace.passes("objectives")
    return Setup(session.family, session.space, passes, session.weights, session.precision, device, [])


@contextmanager
def scratch(shape: str) -> Iterator[Path]:
    """Yields a directory for a random family: in memory, where there is room for two members."""
    config = SHAPES[shape]
    layer = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    needed = 2 * 2 * (config.num_hidden_layers * layer + 2 * config.vocab_size * config.hidden_size)
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1.2 * needed
    with tempfile.TemporaryDirectory(dir=MEMORY if in_memory else None) as directory:
        yield Path(directory)


def random_family(shape: str, directory: Path, device: torch.device) -> Setup:
    """Sets up two members with random weights in bfloat16, random tokens, and KL to the base."""
    config = SHAPES[shape]
    for seed, name in enumerate(("base", "variant")):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(directory / name)
        del model
    family = Family.load(str(directory / "base"), {"variant": str(directory / "variant")})
    depth = config.num_hidden_layers
    space = Space(
        models=tuple(member.model for member in family.members),
        depth=depth,
        sizes=(depth * 3 // 4,),
        removable=tuple(range(1, depth - 1)),
        methods=("task_arithmetic", "slerp"),
        dtype="float32",
        out_dtype="bfloat16",
    )
    compute = compute_dtype(device, "bfloat16")
    count, length = SEQUENCES[shape]
    ids = torch.randint(config.vocab_size, (count, length), generator=torch.Generator().manual_seed(0))
    sets = (TokenSet("random", tuple(ids), "random"),)
    rungs = layout(sets, 4 * length, device=device)
    teacher = load_model(directory / "base", compute, device)
    objective = build_kl(
        "kl",
        sets,
        teachers={"random": ("base", lambda batch: predictions_alone(teacher, batch))},
        top_k=128,
        batches=[batch for rung in rungs for batch in rung],
    )
    precision = Precision.of("float32", "bfloat16", compute)
    return Setup(family, space, Passes([objective], rungs), {"kl": 1.0}, precision, device, [])


def generation(space: Space, parents: Sequence[Point], count: int, rng: np.random.RandomState) -> list[Plan]:
    """Returns different children; the parents take turns."""
    children: dict[str, Plan] = {}
    while len(children) < count:
        child = plan_of(space.decode(space.mutate(parents[len(children) % len(parents)], rng)))
        children.setdefault(child.digest, child)
    return list(children.values())


def generations(space: Space, count: int) -> dict[str, list[Plan]]:
    """Returns the `first` and the `middle` generation of a search."""
    rng = np.random.RandomState(0)
    parent = space.encode(space.select(0, middle_block(space)), rng)
    parents = [parent]
    for _ in range(3):  # four parents that some generations have changed
        point = parent
        for _ in range(6):
            point = space.mutate(point, rng)
        parents.append(point)
    return {
        "first": generation(space, [parent], count, rng),
        "middle": generation(space, parents, count, rng),
    }


def one_parent(space: Space, count: int, seed: int) -> list[Plan]:
    """Returns children of a random member without random layers, changed up to a dozen times."""
    rng = np.random.RandomState(seed)
    removed = set(rng.choice(space.removable, space.depth - space.sizes[0], replace=False).tolist())
    parent = space.encode(space.select(rng.randint(len(space.models)), removed), rng)
    for _ in range(rng.randint(12)):
        parent = space.mutate(parent, rng)
    return generation(space, [parent], count, rng)
