"""A family: one base model and its variants, and whether they fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gptailor_merge.errors import FamilyError, Problem
from gptailor_merge.models.architecture import Kind
from gptailor_merge.models.depth import DEPTH, per_layer_lists
from gptailor_merge.models.member import Member, read_member
from gptailor_merge.models.member_differences import (
    head_warning,
    outer_problem,
    settings_warning,
    token_warning,
)
from gptailor_merge.recipe.model_names import with_one_name_each
from gptailor_merge.recipe.recipe import Recipe

BASE_NAME = "base"


_FORM = ("architectures", "model_type", DEPTH)
"""Config values that all members share, in the whole config or in the language model's."""


@dataclass(frozen=True)
class Family:
    """One base model and its variants: same architecture, shapes and depth.

    Attributes:
        members: the base first.
    """

    members: tuple[Member, ...]

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what differs between members, for models that get the base's tokenizer."""
        return self.warnings_with(self.base)

    def warnings_with(self, donor: Member) -> tuple[str, ...]:
        """Returns sentences about what differs between members, and what the result takes.

        Args:
            donor: the member that gives the tokenizer.
        """
        others = [member for member in self.members if member is not self.base]
        return (
            *(text for member in others if (text := settings_warning(self.base, member))),
            *(text for member in others if (text := head_warning(self.base, member))),
            *(text for m in self.members if m is not donor and (text := token_warning(donor, m))),
        )

    def outer_problem(self, member: Member, donor: Member, *, of_head: bool = True) -> str | None:
        """Returns why a member cannot give embeddings and head, or None if it can.

        Args:
            donor: the member that gives the tokenizer.
            of_head: False asks for the embeddings alone.
        """
        return outer_problem(self.base, member, donor, of_head=of_head)

    @property
    def base(self) -> Member:
        """The base model."""
        return self.members[0]

    @property
    def depth(self) -> int:
        """The number of layers of every member."""
        return self.base.depth

    def by_model(self, model: str) -> Member:
        """Returns the member that recipes call `model`."""
        return next(member for member in self.members if member.model == model)

    def by_name(self, name: str) -> Member | None:
        """Returns the member of that name, or None."""
        return next((member for member in self.members if member.name == name), None)

    @property
    def tied(self) -> bool:
        """True if the head is the embedding matrix."""
        return self.base.tied

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each layer; a layer can take the place of one of the same kind."""
        return self.base.architecture.kinds

    def parameters(self, layers: Sequence[int]) -> int:
        """Returns the number of parameters of the pruned model that has these layers."""
        return self.outer_parameters + sum(self.layer_sizes[layer] for layer in layers)

    @cached_property
    def layer_sizes(self) -> tuple[int, ...]:
        """The number of parameters of each layer."""
        return tuple(sum(map(math.prod, layer.values())) for layer in self.base.architecture.layers)

    @cached_property
    def outer_parameters(self) -> int:
        """The number of parameters outside the layers."""
        return sum(map(math.prod, self.base.architecture.outer.values()))

    @classmethod
    def load(cls, base: str, variants: Mapping[str, str]) -> Family:
        """Reads the members and compares them.

        Args:
            base: directory or Hub id (`id@revision`) of the base.
            variants: name -> directory or Hub id.

        Raises:
            FamilyError: a member cannot be read, or its config or a tensor does not fit the base.
        """
        first = read_member(BASE_NAME, base)
        members = [first, *(read_member(name, model) for name, model in variants.items())]
        problems = [Problem((), text) for member in members[1:] for text in _differences(first, member)]
        if problems:
            raise FamilyError(problems)
        return cls(tuple(members))

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Family:
        """Reads the family that a recipe takes its layers from."""
        recipe = with_one_name_each(recipe)
        return cls.load(recipe.base_model, {m: m for m in recipe.models if m != recipe.base_model})


def _differences(base: Member, member: Member) -> list[str]:
    """Returns the differences that keep a variant out of the family."""
    label = f"{member.name} ({member.model})"
    pairs = ((base.config, member.config), (base.text_config, member.text_config))
    for key in _FORM:
        for our_config, their_config in pairs:
            if (ours := our_config.get(key)) != (theirs := their_config.get(key)):
                return [f"{label}: {key} is {theirs!r}, the base has {ours!r}; a family shares them"]
    our_lists, their_lists = per_layer_lists(base.text_config), per_layer_lists(member.text_config)
    for key in sorted({*our_lists, *their_lists}):
        if our_lists.get(key) != their_lists.get(key):
            return [f"{label}: {key} differs from the base's, so its layers are of other kinds"]
    # The architectures are compared, not the checkpoints, which may hold what no model reads.
    our_model, their_model = base.architecture, member.architecture
    differing = set(our_model.outer) ^ set(their_model.outer)
    if differing and not (base.tied or member.tied):
        return [f"{label}: tensor {min(differing)} is in only one of it and the base"]
    for index, (our_layer, their_layer) in enumerate(zip(our_model.layers, their_model.layers, strict=True)):
        differences = [
            f"tensor {inner} of layer {index} is in only one of it and the base"
            for inner in sorted(set(our_layer) ^ set(their_layer))
        ]
        differences += [
            f"tensor {their_model.prefix}{index}.{inner} has the shape {list(their_layer[inner])}, "
            f"the base's {list(our_layer[inner])}"
            for inner in sorted(set(our_layer) & set(their_layer))
            if our_layer[inner] != their_layer[inner]
        ]
        if differences:
            return [f"{label}: {text}" for text in differences]
    return []
