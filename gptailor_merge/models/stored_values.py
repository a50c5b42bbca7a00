"""Reads the values of stored tensors: whether they are finite, and whether a tied head is stored besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.architecture import Architecture
from gptailor_merge.models.family import Family
from gptailor_merge.models.member import Member
from gptailor_merge.models.stored_names import stored_names

_ROWS = 16384
"""The number of rows that are read at once."""


def differences_told(family: Family, on_step: Callable[[str], None]) -> tuple[str, ...]:
    """Reads every tensor of a family, and returns what differs between its members, a sentence each.

    Args:
        on_step: is told each of them as a warning.

    Raises:
        FamilyError: see check_values.
    """
    on_step("reading the members' values")
    differences = (*family.warnings, *check_values(family))
    for sentence in differences:
        on_step(f"warning: {sentence}")
    return differences


def check_values(family: Family) -> tuple[str, ...]:
    """Reads every tensor of a family once, and returns sentences about heads that the result does not take.

    The members are downloaded where they are not on this machine.

    Raises:
        FamilyError: a tensor of a member holds NaN or infinities; names it.
    """
    problem = value_problem(family)
    if problem is not None:
        raise FamilyError(problem)
    return stored_heads(family)


def value_problem(family: Family) -> str | None:
    """Returns a sentence about the first tensor of a family that holds NaN or infinities, or None."""
    for member in family.members:
        name = not_finite_tensor(member)
        if name is not None:
            return (
                f"{member.name}: {name} in {member.directory.name}/{member.files[name].name} holds NaN or "
                "infinite values; take a sound copy of this model, or leave it out of the family"
            )
    return None


def not_finite_tensor(member: Member) -> str | None:
    """Returns the name of a member's first tensor that holds NaN or infinities, or None.

    Tensors that the files hold besides those of the model are not read.
    """
    names = dict.fromkeys(
        stored for name, _, layer in member.tensors() for stored in member.sources(name, layer)
    )
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(member.files[name], []).append(name)
    for file, names_in_file in by_file.items():
        with safe_open(file, "pt") as tensors:
            for name in names_in_file:
                if not all(map(is_finite, _pieces(tensors, name))):
                    return name
    return None


def is_finite(tensor: torch.Tensor) -> bool:
    """Tells whether a tensor holds neither NaN nor infinities."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # aminmax needs no memory and is not implemented for every 8-bit dtype.
    tensor = tensor.float() if tensor.element_size() == 1 else tensor
    return all(bool(end.isfinite()) for end in tensor.aminmax())


def stored_heads(family: Family) -> tuple[str, ...]:
    """Returns a sentence for each member whose config ties its head, and whose files hold another one."""
    sentences = []
    for member in family.members:
        name = stored_head(member.config, member.files)
        if name is not None:
            sentences.append(
                f"{member.name} has tie_word_embeddings in its config.json, and its files hold another head, "
                f"{name}, which transformers takes; the result's head is the embedding matrix"
            )
    return tuple(sentences)


def stored_head(config: Mapping[str, Any], files: Mapping[str, Path]) -> str | None:
    """Returns the name of a stored head that differs from the embeddings that the config ties it to, or None.

    Args:
        files: tensor name -> the file that holds it.
    """
    stored = stored_names(config, files)
    for target, source in Architecture.of(config).tied.items():
        head, embeddings = stored.get(target), stored.get(source)
        if head is not None and embeddings is not None:
            with safe_open(files[head], "pt") as first, safe_open(files[embeddings], "pt") as second:
                pieces = zip(_pieces(first, head), _pieces(second, embeddings), strict=False)
                same_shape = first.get_slice(head).get_shape() == second.get_slice(embeddings).get_shape()
                if not same_shape or not all(torch.equal(ours, theirs) for ours, theirs in pieces):
                    return head
    return None


def _pieces(tensors: Any, name: str) -> Iterator[torch.Tensor]:
    """Yields a stored tensor in pieces of some rows."""
    view = tensors.get_slice(name)
    shape = view.get_shape()
    if not shape:
        yield tensors.get_tensor(name)
        return
    for first in range(0, shape[0], _ROWS):
        yield view[first : first + _ROWS]
