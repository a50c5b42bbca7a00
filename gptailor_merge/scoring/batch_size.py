"""Finds how many tokens should go through a model together, where a search config leaves it open.

A GPU is bound by launching operations where batches are small, and by memory where they are large. In between
the speed hardly changes, so that a ladder finds the place: the size doubles while that pays and memory holds.
A CPU's caches are small, and its batches are always DEFAULT_BATCH_TOKENS.

Scores of different sizes differ in their last bits on a GPU, since its matrix products add up in another
order. A run therefore keeps the size that was found, see runs.claim.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from gptailor_merge.calibration.batches import Batch, Segment
from gptailor_merge.composing.bank import family_bytes
from gptailor_merge.composing.memory import free, is_out_of_memory
from gptailor_merge.config import SearchConfig
from gptailor_merge.models.family import Family
from gptailor_merge.objectives.config_types import AUTO
from gptailor_merge.scoring.passes import predictions_alone
from gptailor_merge.scoring.teachers import Teachers

DEFAULT_BATCH_TOKENS = 4096


GAIN = 1.1
"""A doubled batch must be this much faster."""


SEQUENCE_LENGTH = 512
"""Length of the sequences that are tried where no objective says its own."""


SHARE = 0.25
"""Share of the memory beside the family that a batch may take; composed layers are cached in the rest."""


TRIALS = 3


Speed = Callable[[int], float | None]
"""Tells the tokens per second of batches of a size, or None where memory does not hold them."""


def batch_tokens(config: SearchConfig, family: Family, teachers: Teachers, dtype: torch.dtype) -> int:
    """Returns the tokens of a batch: those of the config, or what is found best on this device.

    Args:
        teachers: have the base model, which is run.
        dtype: that of forward passes.
    """
    if config.batch_tokens != AUTO:
        return int(config.batch_tokens)
    if teachers.device.type != "cuda":
        return DEFAULT_BATCH_TOKENS
    lengths = [getattr(objective, "sequence_length", SEQUENCE_LENGTH) for objective in config.objectives]
    most = sum(getattr(objective, "tokens", DEFAULT_BATCH_TOKENS) for objective in config.objectives)
    return climb(speed_on_gpu(family, teachers, dtype, max(lengths)), DEFAULT_BATCH_TOKENS, most)


def climb(speed: Speed, least: int, most: int) -> int:
    """Returns the last size of the ladder from `least`, doubled each time, that was worth its memory.

    >>> climb({4096: 1.0, 8192: 1.9, 16384: 2.0}.get, 4096, 99999)
    8192
    """
    size, fastest = least, speed(least)
    while fastest is not None and 2 * size <= most:
        following = speed(2 * size)
        if following is None or following < GAIN * fastest:
            break
        size, fastest = 2 * size, following
    return size


def speed_on_gpu(family: Family, teachers: Teachers, dtype: torch.dtype, length: int) -> Speed:
    """Returns what measures the base model on random sequences of a length.

    A batch may take SHARE of the memory that the family leaves: what a pass takes at its peak, and the hidden
    states of one path, which a search keeps.
    """
    device = teachers.device
    model = teachers.model("base")
    total = torch.cuda.get_device_properties(device).total_memory
    left = total - family_bytes(family, dtype)
    room = SHARE * (left if left > 0.3 * total else total)  # a family that leaves less stays on the host
    width = int(model.get_input_embeddings().weight.shape[-1])
    state_bytes = family.depth * width * dtype.itemsize

    def speed(tokens: int) -> float | None:
        try:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            seconds = seconds_of_pass(model, tokens, length, device)
            taken = torch.cuda.max_memory_allocated(device) - before
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            taken, seconds = total, 1.0
        free(device)
        return tokens / seconds if taken + tokens * state_bytes <= room else None

    return speed


def seconds_of_pass(model: PreTrainedModel, tokens: int, length: int, device: torch.device) -> float:
    """Returns the time of the fastest of some forward passes, logits included."""
    count = max(1, tokens // length)
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(vocabulary, (count, length), generator=generator).to(device)
    batch = Batch(ids, (Segment("random", range(count), range(count)),))
    times = []
    for _ in range(TRIALS):
        begun = time.perf_counter()
        for _prediction in predictions_alone(model, batch):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times)
