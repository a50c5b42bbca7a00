"""The hidden states of teachers, which a model is to have at a few of its layers.

A pruned model learns more from few texts where it is told not only what its teacher predicts but also what
its layers are given on the way there: S. Muralidharan et al., Compact Language Models via Pruning and
Knowledge Distillation (2024), who advise it where depth is pruned.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gptailor_merge.calibration.batches import Batch
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.files import make_directory, writing
from gptailor_merge.objectives.protocols import TeacherForward, Watch

PLACES = 4
"""The most layers that are compared, see benchmarks/README.md."""


NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
"""Byte -> the float8 number that it is."""


@dataclass(frozen=True)
class Places:
    """Layers that are to be given what they were given in the teacher.

    Attributes:
        layers: of the pruned model, by their positions in it.
        teacher_layers: the position that each of these had in the teacher.
    """

    layers: tuple[int, ...] = ()
    teacher_layers: tuple[int, ...] = ()


NOWHERE = Places()
"""No layers: predictions alone are compared."""


def places_of(kept: Sequence[int], text_config: Mapping[str, Any]) -> Places:
    """Returns a few layers that come after a removed one, spread evenly from the first of them to the last.

    >>> places_of([0, 1, 4, 5, 6, 9, 10], {})
    Places(layers=(2, 3, 4, 6), teacher_layers=(4, 5, 6, 10))

    Args:
        kept: the layers that are left, in order.
        text_config: of the teacher; where layers look at images alone, texts skip them, and there is no
            telling which layer is which.
    """
    if text_config.get("cross_attention_layers"):
        return NOWHERE
    moved = [layer for layer, of_teacher in enumerate(kept) if layer != of_teacher]
    last, count = len(moved) - 1, min(PLACES, len(moved))
    layers = tuple(moved[number * last // max(1, count - 1)] for number in range(count))
    return Places(layers, tuple(kept[layer] for layer in layers))


class TeacherStates:
    """Keeps what layers of a teacher are given, 8 bits a number, in files: memory may not hold it."""

    def __init__(self, sets: Sequence[TokenSet], directory: Path) -> None:
        """
        Args:
            sets: the texts of this teacher.
            directory: the files are made in it; who asks for them removes it.
        """
        make_directory(directory)
        self._sizes = {token_set.digest: len(token_set.sequences) for token_set in sets}
        self._directory = directory
        self._kept: dict[str, dict[str, torch.Tensor]] = {}

    def see(self, batch: Batch, states: Sequence[torch.Tensor]) -> None:
        """Takes the states that the layers are given for a batch, [sequences, length, width] each."""
        by_layer = torch.stack(list(states), 1).float()
        scales = by_layer.square().mean(-1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        # Not every device has numbers of 8 bits.
        scaled = (by_layer / scales[..., None]).cpu().to(torch.float8_e4m3fn).view(torch.uint8)
        for segment in batch.segments:
            if segment.digest in self._sizes:
                kept = self._kept_of(segment.digest, scaled.shape[1:])
                rows, at = list(segment.rows), slice(segment.at.start, segment.at.stop)
                kept["states"][rows] = scaled[at]
                kept["scales"][rows] = scales[at].cpu()

    def of(self, token_set: TokenSet) -> dict[str, torch.Tensor]:
        """Returns the states of all sequences of a text.

        They are `states`, the bytes of float8 numbers [sequences, layers, length, width] that were divided by
        the root mean square of each token's, and `scales`, these, float32 [sequences, layers, length].
        """
        return self._kept[token_set.digest]

    def _kept_of(self, set_digest: str, shape: torch.Size) -> dict[str, torch.Tensor]:
        if set_digest not in self._kept:
            shape = torch.Size((self._sizes[set_digest], *shape))
            file = self._directory / f"states-{len(self._kept)}"
            with writing(file), file.open("wb") as stream:
                # A file that turns out not to fit when its memory is written to would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, shape.numel())
            states = torch.from_file(str(file), shared=True, size=shape.numel(), dtype=torch.uint8)
            self._kept[set_digest] = {"states": states.view(shape), "scales": torch.zeros(shape[:-1])}
        return self._kept[set_digest]


def distance(states: Sequence[torch.Tensor], theirs: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns ‖state − teacher's‖² / ‖teacher's‖², mean over layers and tokens; a first token does not count.

    Args:
        states: that layers of the model are given, [sequences, length, width] each.
        theirs, scales: see TeacherStates.of.
    """
    ours = torch.stack(list(states), 1).float() / scales[..., None]
    return (ours - NUMBERS.to(ours.device)[theirs.int()])[:, :, 1:].square().mean()


def watched(
    teachers: Mapping[str, tuple[str, TeacherForward]],
    sets: Sequence[TokenSet],
    places: Places,
    directory: Path,
) -> tuple[dict[str, tuple[str, TeacherForward]], dict[str, TeacherStates]]:
    """Returns the teachers as they are when their states are kept, and where they are kept, by text.

    Args:
        teachers: name of a text -> (digest, forward pass).
        directory: see TeacherStates.
    """
    kept: dict[str, TeacherStates] = {}
    for number, teacher in enumerate(dict.fromkeys(digest for digest, _ in teachers.values())):
        taught = [token_set for token_set in sets if teachers[token_set.name][0] == teacher]
        kept[teacher] = TeacherStates(taught, directory / str(number))
    forwards: dict[str, tuple[str, TeacherForward]] = {}
    for name, (teacher, forward) in teachers.items():
        watch = Watch(places.teacher_layers, kept[teacher].see)
        forwards[name] = teacher, partial(forward, watch=watch)
    return forwards, {name: kept[teacher] for name, (teacher, _) in teachers.items()}
