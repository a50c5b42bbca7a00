"""The processes that train one model together, where `accelerate launch` has started several."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from gptailor_merge.errors import ConfigError

SHARDED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP"}
"""Variable that `accelerate launch` sets -> the method, by which no process has all weights."""


@dataclass(frozen=True)
class Processes:
    """Says how many processes train a model, and which of them this is.

    Attributes:
        count: of processes, each of which trains on its share of every step.
        index: of this process; the first is the main one, which alone writes results and speaks.
    """

    count: int = 1
    index: int = 0

    @property
    def is_main(self) -> bool:
        """True in the process that writes and speaks."""
        return self.index == 0

    def wait(self) -> None:
        """Waits until all processes have come as far as this."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    def agree(self, decision: bool) -> bool:
        """Returns the decision of the main process, which all others then take, too."""
        if self.count == 1:
            return decision
        shared = [decision]
        broadcast_object_list(shared)
        return shared[0]


def is_launched() -> bool:
    """Tells whether this process was launched as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Tells whether this process is the one that writes and speaks."""
    return not is_launched() or bool(PartialState().is_main_process)


def launched_processes(device: torch.device) -> Processes:
    """Joins the processes that were launched beside this one; from then on each has a GPU of its own.

    Args:
        device: that was asked for; `cuda` is the GPU of this process.

    Raises:
        ConfigError: the device is a certain GPU, which all processes would share, or the model would not be
            whole in each process.
    """
    if not is_launched():
        return Processes()
    for variable, method in SHARDED.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"heal trains a whole model in each process; expected accelerate launch without {method}, "
                f"found {variable}=true"
            )
    if device.index is not None:
        raise ConfigError(f"each process takes a GPU of its own; expected --device cuda, found {device}")
    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.num_processes, state.process_index)
