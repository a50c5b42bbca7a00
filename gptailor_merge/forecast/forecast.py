"""Tells what a search will take: memory, tokens, and time where the speed of this machine was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from gptailor_merge.composing.bank import belongs_on_host
from gptailor_merge.composing.memory import free as release
from gptailor_merge.composing.memory import is_out_of_memory
from gptailor_merge.config import SearchConfig
from gptailor_merge.forecast.memory_parts import (
    ComputePlace,
    MemoryPart,
    free_memory,
    memory_parts,
    stored_bytes,
)
from gptailor_merge.forecast.speed import BaseSpeed, measured_speed
from gptailor_merge.forecast.stage_tokens import (
    HELD_OUT,
    StageTokens,
    first_batch_tokens,
    scored_tokens,
    stage_tokens,
    uncounted,
)
from gptailor_merge.models.checkpoint import ModelId, is_on_disk
from gptailor_merge.models.devices import compute_dtype
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.text_kinds import TextConfig
from gptailor_merge.scoring.workplace import BankMode
from gptailor_merge.space.space import Space


@dataclass(frozen=True)
class Forecast:
    """Tells what a search will take, before it begins.

    Attributes:
        members: the number of models in the family.
        depth: layers of each.
        parameters: of the base.
        sizes: number of layers that the pruned model may have -> its parameters, with the first layers.
        stored: dtype as files name it -> bytes of the family in its files.
        device: the device that models run on, as torch names it.
        on_host: whether the family's weights stay in the host's memory, beside a device with its own.
        memory: parts of the memory, at most; together they are the peak.
        free: what is free now, with what this program has already.
        stages: the tokens of each stage, at most.
        speed: of the base on this device; None where it was not measured.
        notes: sentences on what is not in the numbers, and on what will not fit.
    """

    members: int
    depth: int
    parameters: int
    sizes: Mapping[int, int]
    stored: Mapping[str, int]
    device: str
    on_host: bool
    memory: tuple[MemoryPart, ...]
    free: MemoryPart
    stages: tuple[StageTokens, ...]
    speed: BaseSpeed | None
    notes: tuple[str, ...]

    @property
    def peak(self) -> MemoryPart:
        """The memory in all."""
        return peak_of(self.memory)

    @property
    def tokens(self) -> int | None:
        """The tokens in all, at most; None where a front is sought, whose recipes are not counted yet."""
        return None if any(s.each for s in self.stages) else sum(s.tokens for s in self.stages)

    @property
    def seconds(self) -> float | None:
        """The seconds of all stages, at most; None where the speed or a stage's tokens are not known."""
        each = [self.seconds_of(stage) for stage in self.stages]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if self.tokens is not None and len(known) == len(each) else None

    def seconds_of(self, stage: StageTokens) -> float | None:
        """Returns the seconds of a stage, at most; None where the speed is not known."""
        if self.speed is None:
            return None
        share = 1.0 if stage.stage == HELD_OUT else max(self.sizes) / self.depth
        return self.speed.seconds(stage.tokens, share)


def forecast(
    config: SearchConfig,
    family: Family,
    space: Space,
    device: torch.device,
    *,
    bank: BankMode = "auto",
    measure: bool = True,
    on_step: Callable[[str], None] = lambda step: None,
) -> Forecast:
    """Returns what a search will take.

    Args:
        family, space: those of the config.
        bank: where the family's weights are to live.
        measure: runs a batch through the base where its weights are on this machine, for a few seconds.

    Raises:
        FamilyError: the base cannot be loaded.
    """
    out = getattr(torch, str(space.out_dtype))
    compute = compute_dtype(device, str(space.out_dtype))
    on_host = belongs_on_host(family, compute, device) if bank == "auto" else bank == "host"
    place = ComputePlace(device, compute, out, on_host)
    parts, room = memory_parts(config, family, space, place), free_memory(place)
    stages = stage_tokens(config, family.depth, space.sizes)
    speed, reason = _speed(config, family, place, on_step) if measure else (None, None)
    return Forecast(
        members=len(family.members),
        depth=family.depth,
        parameters=family.parameters(range(family.depth)),
        sizes={size: family.parameters(range(size)) for size in space.sizes},
        stored=stored_bytes(family),
        device=str(device),
        on_host=on_host and device.type != "cpu",
        memory=parts,
        free=room,
        stages=stages,
        speed=speed,
        notes=(*_notes(config, peak_of(parts), room), *([reason] if reason else [])),
    )


def _notes(config: SearchConfig, peak: MemoryPart, room: MemoryPart) -> Iterator[str]:
    if kinds := uncounted(config):
        yield f"what {' and '.join(kinds)} send through models comes on top; it is known when they are read"
    if config.search.workers is not None:
        yield f"memory and time are those of one worker; search.workers is {config.search.workers}"
    if config.heal.tokens:
        yield "training (heal) takes more memory than is reckoned here"
    for name, needed, left in (("device", peak.device, room.device), ("host", peak.host, room.host)):
        if needed > left > 0:
            yield (
                f"the {name} has {in_bytes(left)} free, less than the {in_bytes(needed)} that the "
                "search may come to"
            )


def _speed(
    config: SearchConfig, family: Family, place: ComputePlace, on_step: Callable[[str], None]
) -> tuple[BaseSpeed | None, str | None]:
    """Returns the speed of the base, or why it is not known."""
    model = ModelId.parse(family.base.model)
    if model.adapter is not None or not is_on_disk(model):
        return None, "no time is said, since the base's weights are not on this machine yet"
    texts = [objective for objective in config.objectives if isinstance(objective, TextConfig)]
    if not texts:
        return None, "no time is said, since nothing is scored on texts"
    on_step("measuring how fast the base scores")
    try:
        speed = measured_speed(
            family.base,
            place.compute,
            place.device,
            batch_tokens=min(first_batch_tokens(config), scored_tokens(texts)),
            sequence_length=texts[0].sequence_length,
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        speed = None
    release(place.device)
    return speed, None if speed else f"no time is said, since {place.device} cannot hold the base and a batch"


def peak_of(parts: Sequence[MemoryPart]) -> MemoryPart:
    """Returns the sum of parts."""
    return MemoryPart("in all", sum(part.device for part in parts), sum(part.host for part in parts))


def in_bytes(size: int) -> str:
    """Writes a size as people compare it with a GPU's memory.

    >>> in_bytes(12_349_714_432), in_bytes(15_688_704)
    ('12.3 GB', '16 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
