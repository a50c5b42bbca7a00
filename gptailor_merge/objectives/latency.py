"""The kinds `prefill_latency` and `decode_latency`: how long a model takes on this device."""

from __future__ import annotations

import inspect
import platform
import statistics
import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedModel

from gptailor_merge.digests import digest
from gptailor_merge.objectives.costs import (
    CostConfig,
    CostPerModel,
    Shapes,
    cache_name,
    once_per_shape,
    prompt_ids,
)
from gptailor_merge.objectives.kinds import Context

PROMPT = 512
"""Tokens in the prompt, unless the config says otherwise."""


DECODED = 32
"""Tokens that are generated to measure decoding."""


WARM_UP, REPEATS = 2, 7
"""Runs before the timed ones, and timed runs."""


LatencyKind = Literal["prefill_latency", "decode_latency"]


class LatencyConfig(CostConfig):
    """Milliseconds for a prompt of `tokens` tokens, or for each token behind it."""

    kind: LatencyKind

    def cost(self, context: Context) -> Latency:
        """Makes the objective, for the device that models run on."""
        return Latency(self.kind, self.kind, self.tokens or PROMPT, _described(context.device))


@dataclass(frozen=True)
class Latency(CostPerModel):
    """Milliseconds that a model takes on this device, alone: the median of several runs.

    Attributes:
        kind: prefill is a whole prompt; decode is one token behind it, with the KV cache.
        tokens: length of the prompt, as far as the model's context holds it.
        device: its name; times on different devices are not comparable.
    """

    name: str
    kind: LatencyKind
    tokens: int
    device: str
    unit = "ms"
    _known: Shapes = field(default_factory=dict, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Depends on what is timed, on the prompt's length and on the device."""
        return digest([self.kind, self.tokens, self.device])

    def of(self, model: PreTrainedModel) -> float:
        """Returns the milliseconds, measured once for each shape of model."""
        return once_per_shape(self._known, model, self._measured)

    def _measured(self, model: PreTrainedModel) -> float:
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        prompt = prompt_ids(model, min(self.tokens, max(1, (longest or self.tokens + DECODED) - DECODED)))
        run = _prefill if self.kind == "prefill_latency" else _decode
        times = [run(model, prompt) for _ in range(WARM_UP + REPEATS)]
        return 1000 * statistics.median(times[WARM_UP:])


def _prefill(model: PreTrainedModel, prompt: torch.Tensor) -> float:
    """Returns the seconds for a prompt."""
    begun = _now(model.device)
    model(prompt, use_cache=True, **_last_only(model))
    return _now(model.device) - begun


def _decode(model: PreTrainedModel, prompt: torch.Tensor) -> float:
    """Returns the seconds per token that is generated greedily behind a prompt."""
    output = model(prompt, use_cache=True, **_last_only(model))
    begun = _now(model.device)
    for _ in range(DECODED):
        token = output.logits[:, -1:].argmax(-1)
        name = cache_name(output)
        output = model(token, **{name: output[name]}, use_cache=True)
    return (_now(model.device) - begun) / DECODED


def _now(device: torch.device) -> float:
    """Returns the time in seconds after the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _last_only(model: PreTrainedModel) -> dict[str, int]:
    """Returns the arguments with which a model gives logits for the last position only, as in generation."""
    name = "logits_to_keep"
    return {name: 1} if name in inspect.signature(model.forward).parameters else {}


def _described(device: torch.device) -> str:
    """Returns a device's name, and for a CPU its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.processor()} {device.type} {torch.get_num_threads()}"
