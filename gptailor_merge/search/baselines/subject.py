"""The model of full depth that a baseline prunes: a member of the family, or a merge of all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError
from gptailor_merge.models.family import Family
from gptailor_merge.models.member import Member
from gptailor_merge.recipe.plan import SELECT, Component, Operation, Plan, Settings, Slot
from gptailor_merge.space.space import Space

MERGES: Mapping[str, Settings] = {
    "linear": (("weight", 1.0),),
    "task_arithmetic": (("weight", 0.4),),
    "ties": (("weight", 1.0), ("density", 0.2)),
}
"""Merges of a whole family without a validation set: the mean of all members (M. Wortsman et al., Model
soups, arXiv 2203.05482); base + 0.4 Σ task vectors (G. Ilharco et al., arXiv 2212.04089); TIES of the
largest fifth of each task vector with λ = 1 (P. Yadav et al., arXiv 2306.01708). Each member but the method's
base has these settings."""


_SELECT = Operation(SELECT, ((),))


@dataclass(frozen=True)
class Subject:
    """A model that is pruned as one.

    Attributes:
        sources: the models whose layers each slot takes.
        operation: what makes one layer of theirs.
        outer: (models, operation) of the embeddings, the final norm and the head; None is the base's.
    """

    name: str
    base_model: str
    depth: int
    sources: tuple[str, ...]
    operation: Operation = _SELECT
    outer: Component | None = None
    dtype: str | None = None
    out_dtype: str | None = None

    @property
    def member(self) -> str | None:
        """The model, where it is a member as it is."""
        return None if len(self.sources) > 1 else self.sources[0]

    def without(self, removed: Collection[int]) -> Plan:
        """Returns the plan of this model without some layers."""
        return self.plan([self.slot(layer) for layer in range(self.depth) if layer not in removed])

    def slot(self, layer: int) -> Slot:
        """Returns the slot that is one of this model's layers."""
        return Slot(tuple((model, layer) for model in self.sources), self.operation)

    def plan(self, slots: Sequence[Slot]) -> Plan:
        """Returns a plan with these slots, and this model's embeddings and head."""
        outer = Component((self.base_model,), _SELECT) if self.outer is None else self.outer
        return Plan(
            base_model=self.base_model,
            slots=tuple(slots),
            embeddings=outer,
            head=outer,
            tokenizer=self.base_model,
            dtype=self.dtype,
            out_dtype=self.out_dtype,
        )


def base_of(space: Space) -> Subject:
    """Returns the base model."""
    return _member("base", space, space.models[0], own_outer=False)


def whole_models(space: Space) -> list[Subject]:
    """Returns the members of a family and its usual merges, as far as a space has them, the base first."""
    members = [space.select(number, set()) for number in range(len(space.models))]
    return [_of_plan(plan, space) for plan in (*members, *space.merges(set()))]


def _of_plan(plan: Plan, space: Space) -> Subject:
    """Returns the model of a plan of full depth whose slots are all made alike."""
    first = plan.slots[0]
    sources = tuple(model for model, _ in first.layers)
    return Subject(
        sources[0] if len(sources) == 1 else first.operation.method,
        space.models[0],
        space.depth,
        sources,
        first.operation,
        outer=plan.embeddings,
        dtype=space.dtype,
        out_dtype=space.out_dtype,
    )


def subject_of(family: Family, space: Space, *, member: str | None, merge: str | None) -> Subject | None:
    """Returns the model that the command line names; None where it names none.

    Embeddings and head are the model's own, provided that its tokens are the base's: the objectives give it
    those.

    Raises:
        ConfigError: no such member, no such merge, or both are asked for.
    """
    if member is not None and merge is not None:
        raise ConfigError("--member prunes one member and --merge a merge of all; expected one of them")
    if merge is not None:
        return _merge(family, space, merge)
    if member is None:
        return None
    chosen = family.by_name(member)
    if chosen is None:
        names = [each.name for each in family.members]
        raise ConfigError(f"--member: no such member, found {member!r}{suggest(member, names)}")
    own_outer = chosen is not family.base and _fits(family, chosen)
    return _member(chosen.name, space, chosen.model, own_outer=own_outer)


def _member(name: str, space: Space, model: str, *, own_outer: bool) -> Subject:
    outer = Component((model,), _SELECT) if own_outer else None
    return Subject(
        name,
        space.models[0],
        space.depth,
        (model,),
        outer=outer,
        dtype=space.dtype,
        out_dtype=space.out_dtype,
    )


def _merge(family: Family, space: Space, method: str) -> Subject:
    if method not in MERGES:
        raise ConfigError(f"--merge: expected one of {', '.join(MERGES)}, found {method!r}")
    if len(family.members) < 2:
        raise ConfigError("--merge: a merge takes two models or more, the family has one")
    models = tuple(member.model for member in family.members)
    base = None if method == "linear" else 0
    inputs = tuple(() if position == base else MERGES[method] for position in range(len(models)))
    operation = Operation(method, inputs, base=base)
    return Subject(
        method,
        space.models[0],
        space.depth,
        models,
        operation,
        outer=Component(models, operation)
        if all(_fits(family, member) for member in family.members)
        else None,
        dtype=space.dtype,
        out_dtype=space.out_dtype,
    )


def _fits(family: Family, member: Member) -> bool:
    return family.outer_problem(member, family.base) is None
