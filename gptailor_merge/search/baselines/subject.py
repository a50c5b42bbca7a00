"""A model of full depth that a baseline prunes: a member of the family, or a merge of all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from gptailor_merge.documents import suggest
from gptailor_merge.errors import ConfigError
from gptailor_merge.models.family import Family
from gptailor_merge.models.member import Member
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.space.space import Space

MERGES: Mapping[str, Mapping[str, Any]] = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 1.0, "density": 0.2},
}
"""Merges of a whole family without a validation set: the mean of all members (M. Wortsman et al., Model
soups, arXiv 2203.05482); base + 0.4 Σ task vectors (G. Ilharco et al., arXiv 2212.04089); TIES of the
largest fifth of each task vector with λ = 1 (P. Yadav et al., arXiv 2306.01708)."""


@dataclass(frozen=True)
class Subject:
    """A model that is pruned as one.

    Attributes:
        sources: model -> parameters of the layers' source.
        parameters: of a slice: what happens to the sources.
        outer: where embeddings, final norm and head come from, as a recipe says it; None is the base.
    """

    name: str
    base_model: str
    depth: int
    sources: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Any]
    outer: Any = None
    dtypes: Mapping[str, str] = field(default_factory=dict)

    @property
    def member(self) -> str | None:
        """The model, where it is a member as it is."""
        return None if len(self.sources) > 1 else next(iter(self.sources))

    def without(self, removed: Collection[int]) -> Recipe:
        """The recipe of this model without some layers."""
        slices: list[dict[str, Any]] = []
        for gone, group in groupby(range(self.depth), key=lambda layer: layer in removed):
            layers = list(group)
            of: dict[str, Any] = {"layer_range": [layers[0], layers[-1] + 1]}
            if gone:
                slices.append({"sources": [{"model": self.base_model, **of}], "parameters": {"op": "remove"}})
                continue
            sources = [
                {"model": model, **of, **({"parameters": dict(given)} if given else {})}
                for model, given in self.sources.items()
            ]
            slices.append({"sources": sources, "parameters": dict(self.parameters)})
        return self.recipe(slices)

    def recipe(self, slices: list[dict[str, Any]]) -> Recipe:
        """A recipe with these slices, and the rest this model's own."""
        document: dict[str, Any] = {"merge_method": "tailor", "base_model": self.base_model, **self.dtypes}
        document["slices"] = slices
        if self.outer is not None:
            document["parameters"] = {"embeddings": self.outer, "head": self.outer}
        return Recipe.from_mapping(document)


def base_of(space: Space) -> Subject:
    """The base model."""
    return _select("base", space, space.models[0], None)


def subject_of(family: Family, space: Space, *, member: str | None, merge: str | None) -> Subject | None:
    """The model that the command line names; None where it names none.

    Embeddings and head are its own, as far as its vocabulary is of the base's size: the objectives give
    it the base's tokens.

    Raises:
        ConfigError: no such member, no such merge, or both are asked for.
    """
    if member is not None and merge is not None:
        raise ConfigError("--member prunes one member and --merge a merge of all; expected one of them")
    if merge is not None:
        return _merge(family, space, merge)
    if member is None:
        return None
    found = family.by_name(member)
    if found is None:
        names = [one.name for one in family.members]
        raise ConfigError(f"--member: no such member, found {member!r}{suggest(member, names)}")
    own = found.model if found is not family.base and _fits(family, found) else None
    return _select(found.name, space, found.model, own)


def _select(name: str, space: Space, model: str, outer: Any) -> Subject:
    return Subject(name, space.models[0], space.depth, {model: {}}, {"op": "select"}, outer, _dtypes(space))


def _merge(family: Family, space: Space, method: str) -> Subject:
    if method not in MERGES:
        raise ConfigError(f"--merge: expected one of {', '.join(MERGES)}, found {method!r}")
    if len(family.members) < 2:
        raise ConfigError("--merge: a merge takes two models or more, the family has one")
    settings = dict(MERGES[method])
    weight = settings.pop("weight")
    has_base = method != "linear"
    weights = {one.model: weight for one in family.members if not (has_base and one is family.base)}
    sources: dict[str, dict[str, Any]] = {family.base.model: {}} if has_base else {}
    sources |= {model: {"weight": one, **settings} for model, one in weights.items()}
    outer: dict[str, Any] | None = {"method": method, "weights": weights}
    if settings:
        outer = {**(outer or {}), "parameters": settings}
    if not all(_fits(family, one) for one in family.members):
        outer = None
    parameters = {"op": "merge", "method": method}
    return Subject(method, space.models[0], space.depth, sources, parameters, outer, _dtypes(space))


def _fits(family: Family, member: Member) -> bool:
    return bool(member.config["vocab_size"] == family.base.config["vocab_size"])


def _dtypes(space: Space) -> dict[str, str]:
    given = {"dtype": space.dtype, "out_dtype": space.out_dtype}
    return {key: value for key, value in given.items() if value is not None}
