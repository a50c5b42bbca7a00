"""The sequences that a model is trained on, each with what its teacher predicts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gptailor_merge.calibration.batches import layout
from gptailor_merge.calibration.texts import TokenSet
from gptailor_merge.errors import DataError
from gptailor_merge.healing.processes import Processes
from gptailor_merge.healing.states import NOWHERE, Places, TeacherStates, watched
from gptailor_merge.objectives.kl import Reference, build_kl
from gptailor_merge.objectives.protocols import TeacherForward

Lesson = Mapping[str, torch.Tensor]
"""`input_ids` int64 [length]; of the teacher's likeliest next tokens `indices` int32 and `log_probabilities`
float32, [length - 1, k] each; and of what the teacher's layers are given `states` uint8 [layers, length,
width] and `scales` float32 [layers, length], see states. A lesson without a teacher has ids alone."""


BATCH_TOKENS = 8192
"""Tokens that a teacher sees at once, approximately."""


APART = 20
"""The number of sequences of a text of which one is held apart: it tells when to stop."""


ALONE = Processes()
"""This process, where no other trains with it."""


@dataclass(frozen=True)
class Lessons:
    """The lessons of a training, and those that tell whether it helps.

    Attributes:
        taught: lessons that are trained on, texts in turn.
        apart: lessons that are not; they have no states.
        layers: of the model, whose inputs the states are.
    """

    taught: Sequence[Lesson]
    apart: Sequence[Lesson]
    layers: Sequence[int] = ()


def lessons(
    sets: Sequence[TokenSet],
    teachers: Mapping[str, tuple[str, TeacherForward]],
    *,
    top_k: int,
    places: Places = NOWHERE,
    device: torch.device,
    processes: Processes = ALONE,
    directory: Path = Path(),
) -> Lessons:
    """Runs each teacher over its texts once, one teacher after the other.

    Several processes take turns in each text, so that every sequence has been predicted once.

    Args:
        teachers: name of a text -> (digest, forward pass) of its teacher; empty for plain fine-tuning.
        top_k: how many of a teacher's likeliest tokens are kept of each position, see kl.KullbackLeibler.
        places: where the teachers' states are kept, too.
        directory: of files with states, and with what several processes have predicted.

    Raises:
        DataError: a text has a single sequence.
    """
    for token_set in sets:
        if len(token_set.sequences) < 2:
            raise DataError(
                f"{token_set.name}: one sequence of {token_set.tokens} tokens is all there is; some must be "
                "trained on and some held apart, so that two are needed"
            )
    predicted: Sequence[Mapping[str, Lesson]] = [{}]
    if teachers:
        turns = [turn for token_set in sets if (turn := _turn(token_set, processes)).sequences]
        own = directory / f"states-{processes.index}"
        predicted = _exchanged(_predicted(turns, teachers, top_k, places, own, device), processes, directory)
    taught: list[list[Lesson]] = []
    apart: list[Lesson] = []
    for token_set in sets:
        of_set: list[Lesson] = []
        for number, ids in enumerate(token_set.sequences):
            row, process = divmod(number, len(predicted))
            teaching = predicted[process].get(token_set.name, {})
            of_set.append({"input_ids": ids, **{key: tensor[row] for key, tensor in teaching.items()}})
        held = range(min(APART, len(of_set)) - 1, len(of_set), APART)
        apart += [_without_states(of_set[number]) for number in held]
        taught.append([lesson for number, lesson in enumerate(of_set) if number not in held])
    longest = max(map(len, taught))
    in_turn = [of_set[n] for n in range(longest) for of_set in taught if n < len(of_set)]
    return Lessons(in_turn, apart, places.layers if teachers else ())


def _turn(token_set: TokenSet, processes: Processes) -> TokenSet:
    """Returns the sequences of a text that this process predicts."""
    if processes.count == 1:
        return token_set
    sequences = token_set.sequences[processes.index :: processes.count]
    return replace(token_set, sequences=sequences, digest=f"{token_set.digest} {processes.index}")


def _predicted(
    sets: Sequence[TokenSet],
    teachers: Mapping[str, tuple[str, TeacherForward]],
    top_k: int,
    places: Places,
    directory: Path,
    device: torch.device,
) -> dict[str, Lesson]:
    """Returns name of a text -> what its teacher predicts of all sequences, and its states.

    Args:
        directory: where the states are kept.
    """
    if not sets:
        return {}
    ((*batches,),) = layout(sets, BATCH_TOKENS, device=device, rungs=(1.0,))
    states: Mapping[str, TeacherStates] = {}
    if places.layers:
        teachers, states = watched(teachers, sets, places, directory)
    references = build_kl("kl", sets, teachers=teachers, top_k=top_k, batches=batches).references
    return {
        token_set.name: {
            **_on_host(references[token_set.name]),
            **(states[token_set.name].of(token_set) if states else {}),
        }
        for token_set in sets
    }


def _without_states(lesson: Lesson) -> Lesson:
    return {key: tensor for key, tensor in lesson.items() if key not in ("states", "scales")}


def _on_host(reference: Reference) -> Lesson:
    return {"indices": reference.indices.cpu(), "log_probabilities": reference.log_probabilities.cpu()}


def _exchanged(
    predicted: Mapping[str, Lesson], processes: Processes, shared: Path
) -> Sequence[Mapping[str, Lesson]]:
    """Returns what each process has predicted; several share memory, that of the files that they exchange."""
    if processes.count == 1:
        return [predicted]
    tensors = {f"{key} {name}": t for name, teaching in predicted.items() for key, t in teaching.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, _file(shared, processes.index))
    processes.wait()
    exchanged: list[dict[str, dict[str, torch.Tensor]]] = []
    for index in range(processes.count):
        exchanged.append({})
        for name, tensor in load_file(_file(shared, index)).items():
            key, _, text = name.partition(" ")
            exchanged[-1].setdefault(text, {})[key] = tensor
    return exchanged


def _file(shared: Path, index: int) -> Path:
    return shared / f"lessons-{index}.safetensors"
