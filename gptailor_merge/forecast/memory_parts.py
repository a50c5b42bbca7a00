"""Reckons from configs and headers how much memory a search takes, on the device and on the host.

The numbers are those of the largest things: weights, layers that are kept, what is stored of teachers, and
what is alive while a model runs. Training (`heal`) takes more, which is not reckoned here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import psutil
import torch

from gptailor_merge.composing.bank import cache_bytes
from gptailor_merge.config import SearchConfig
from gptailor_merge.forecast.stage_tokens import first_batch_tokens, scored_tokens
from gptailor_merge.models.devices import stored_dtype
from gptailor_merge.models.dtypes import STORED_DTYPES
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.kl import KLConfig
from gptailor_merge.objectives.text_kinds import TextConfig
from gptailor_merge.repair.regression import CLIMB_BYTES
from gptailor_merge.repair.states import DENSE_BYTES
from gptailor_merge.scoring.batch_size import SHARE
from gptailor_merge.scoring.passes import DEFAULT_LOGITS_BYTES, LOGITS_BYTES
from gptailor_merge.space.space import Space
from gptailor_merge.tuning.tuner import BATCH_TOKENS, DEFAULT_BATCH_TOKENS

LOGITS_COPIES = 3
"""Logits are there in the model's dtype, in float32, and once more while they are normalised."""


LATER_IMPORTS = 160 * 1024**2
"""Bytes that this program grows by in a search, for libraries and the journal, measured on Linux."""


@dataclass(frozen=True)
class MemoryPart:
    """A part of the memory that a search takes.

    Attributes:
        name: says what it is.
        device: bytes on a device with memory of its own, at most; 0 where models run on the CPU.
        host: bytes of the host's memory, at most.
    """

    name: str
    device: int = 0
    host: int = 0


@dataclass(frozen=True)
class ComputePlace:
    """The device that models run on, and how they are kept there.

    Attributes:
        device: models run on it.
        compute: the dtype of forward passes.
        out: the dtype of the written model.
        on_host: whether the family's weights stay in the host's memory.
    """

    device: torch.device
    compute: torch.dtype
    out: torch.dtype
    on_host: bool

    def part(self, name: str, size: int, *, on_host: bool = False) -> MemoryPart:
        """Returns a part of so many bytes.

        Args:
            on_host: whether it is in the host's memory also where models run elsewhere.
        """
        if on_host or self.device.type == "cpu":
            return MemoryPart(name, host=size)
        return MemoryPart(name, device=size)


def stored_bytes(family: Family) -> dict[str, int]:
    """Returns dtype -> bytes of all tensors that the members are made of, as their files have them."""
    total: Counter[str] = Counter()
    for member in family.members:
        for name in member.stored_tensors:
            header = member.headers[name]
            dtype = STORED_DTYPES.get(header.dtype, torch.float32)
            total[header.dtype] += math.prod(header.shape) * dtype.itemsize
    return dict(total)


def memory_parts(
    config: SearchConfig, family: Family, space: Space, place: ComputePlace
) -> tuple[MemoryPart, ...]:
    """Returns the parts of the memory that a search takes; together they are its peak."""
    weights = sum(stored_bytes(family).values())
    return (
        MemoryPart("this program", host=psutil.Process().memory_info().rss + LATER_IMPORTS),
        place.part("the family's weights", weights, on_host=place.on_host),
        place.part("layers that are kept to be used again", _kept_layers(config, family, space, place)),
        place.part("what teachers predict", _predictions(config, family)),
        _work(config, family, space, place),
    )


def free_memory(place: ComputePlace) -> MemoryPart:
    """Returns what is free now, with what this program has already."""
    host = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    device = torch.cuda.mem_get_info(place.device)[0] if place.device.type == "cuda" else 0
    return MemoryPart("free now", device, host)


def _kept_layers(config: SearchConfig, family: Family, space: Space, place: ComputePlace) -> int:
    """Returns the bytes of converted and of merged layers, see composing.bank.Bank."""
    stored = getattr(torch, stored_dtype(family.base))
    all_layers = sum(family.layer_sizes) * place.compute.itemsize
    converted = 0
    if not place.on_host and (stored != place.out or place.out != place.compute):
        converted = len(family.members) * all_layers + family.outer_parameters * place.compute.itemsize
    layers_made = config.search.budget * max(space.sizes)
    most_made = layers_made * max(family.layer_sizes) * place.compute.itemsize
    is_cached = bool(space.methods) or place.on_host
    cache = cache_bytes(family, place.compute, place.device, on_host=place.on_host) if is_cached else 0
    return converted + min(cache, most_made)


def _predictions(config: SearchConfig, family: Family) -> int:
    """Returns the bytes of what is stored of teachers: an index and a number for each likely token."""
    rows = family.base.vocabulary_size
    total = 0
    for objective in config.objectives:
        if isinstance(objective, KLConfig):
            tokens = scored_tokens([objective])
            if config.tuned and objective.weight is not None:
                tokens += scored_tokens([objective.model_copy(update={"tokens": config.tune.tokens})])
            total += tokens * min(objective.top_k, rows) * 8
    return total


def _work(config: SearchConfig, family: Family, space: Space, place: ComputePlace) -> MemoryPart:
    """Returns the largest of what is alive at a time, one stage after the other."""
    running = place.part("while models run", _running(config, family, space, place))
    parts = [running]
    if config.repair.finalists:
        states = _repair_states(config, family, space, place.compute)
        parts.append(replace(running, name="while recipes are repaired", host=running.host + states))
    if config.tuned:
        parts.append(place.part("while recipes are tuned", _tuning(config, family, space, place)))
    if config.held_out:
        dense = family.parameters(range(family.depth)) * place.compute.itemsize
        parts.append(place.part("while members are scored", dense + _running(config, family, space, place)))
    device = max(part.device for part in parts)
    largest = max(parts, key=lambda part: (part.device, part.host))
    return replace(largest, device=device, host=max(part.host for part in parts))


def _running(config: SearchConfig, family: Family, space: Space, place: ComputePlace) -> int:
    """Returns the bytes of a batch on its way: stored states, one layer's activations, and logits."""
    scored = max(scored_tokens(config.objectives), scored_tokens(config.held_out), 1)
    width, inner = _widths(family)
    # Layers from the host are asked for once for all recipes, whose states are kept before and after.
    states = 2 * config.search.population if place.on_host else max(space.sizes)
    of_token = (states * width + 4 * width + 3 * inner) * place.compute.itemsize
    size = min(first_batch_tokens(config), scored) * of_token
    if config.batch_tokens == "auto" and place.device.type == "cuda":
        # Batches grow as long as they take no more than a share of what is free, see scoring.batch_size.
        size = max(size, min(scored * of_token, int(SHARE * torch.cuda.mem_get_info(place.device)[0])))
    return size + _logits(config, family, place)


def _tuning(config: SearchConfig, family: Family, space: Space, place: ComputePlace) -> int:
    """Returns the bytes of a differentiated batch: states, one layer's graph and weights, and logits."""
    most = BATCH_TOKENS.get(place.device.type, DEFAULT_BATCH_TOKENS)
    tokens = min(most, config.tune.tokens)
    width, inner = _widths(family)
    graph = max(space.sizes) * width + 2 * (8 * width + 4 * inner)
    merged = 3 * max(family.layer_sizes) * 4
    return tokens * graph * place.compute.itemsize + merged + 2 * _logits(config, family, place)


def _repair_states(config: SearchConfig, family: Family, space: Space, compute: torch.dtype) -> int:
    """Returns the bytes of hidden states that are kept on the host, see repair.states."""
    width, _ = _widths(family)
    of_layer = config.repair.tokens * width * compute.itemsize
    moments = 6 * width * width * 8
    return min(DENSE_BYTES, max(space.sizes) * of_layer) + min(CLIMB_BYTES, of_layer) + moments


def _logits(config: SearchConfig, family: Family, place: ComputePlace) -> int:
    """Returns the bytes of logits that exist at once, see scoring.passes.predictions."""
    lengths = [o.sequence_length for o in _text_objectives(config)]
    row = (max(lengths, default=2) - 1) * family.base.vocabulary_size * 4
    return LOGITS_COPIES * max(row, LOGITS_BYTES.get(place.device.type, DEFAULT_LOGITS_BYTES))


def _text_objectives(config: SearchConfig) -> Iterator[TextConfig]:
    measured = (*config.objectives, *config.gates, *config.held_out)
    return (objective for objective in measured if isinstance(objective, TextConfig))


def _widths(family: Family) -> tuple[int, int]:
    """Returns the width of hidden states and that inside an MLP, as far as the config tells."""
    settings: Mapping[str, object] = family.base.text_config
    width = settings.get("hidden_size")
    width = width if isinstance(width, int) else 0
    inner = settings.get("intermediate_size")
    return width, inner if isinstance(inner, int) else 4 * width
