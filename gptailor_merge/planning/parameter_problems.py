"""Finds mistakes in the parameters of merge methods: unknown, missing, or with impossible values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from gptailor_merge.documents import suggest
from gptailor_merge.errors import KeyPath, Problem
from gptailor_merge.methods.specs import MethodSpec, ParameterScope, ParameterSpec, method_spec
from gptailor_merge.planning.method_parameters import Scopes, settle, slice_scopes, source_parameters
from gptailor_merge.recipe.fields import Conditional, Parameters
from gptailor_merge.recipe.plan import SELECT
from gptailor_merge.recipe.recipe import BASE_MARK, OUTER, OWN, Recipe, Slice, Source


def parameter_problems(spec: MethodSpec, part: Slice) -> Iterator[Problem]:
    """Yields unknown names and impossible values in a slice and its sources."""
    known = {parameter.name: parameter for parameter in spec.parameters}
    label = "select" if spec.name == SELECT else spec.name
    places: list[tuple[KeyPath, Parameters, bool]] = [(("parameters",), part.parameters, False)]
    places += [
        (("sources", position, "parameters"), source.parameters, True)
        for position, source in enumerate(part.sources)
    ]
    for path, parameters, of_source in places:
        for name, value in parameters:
            if not of_source and name in OWN:
                continue
            if of_source and name == BASE_MARK and spec.name != SELECT:
                if value is not True:
                    yield Problem((*path, name), f"expected true, found {value!r}")
                continue
            if name not in known:
                yield Problem((*path, name), f"unknown parameter of {label}{suggest(name, known)}")
            elif of_source and known[name].scope is ParameterScope.SHARED:
                yield Problem((*path, name), f"{label} takes it for the whole slice, not for a source")
            else:
                yield from _setting_problems((*path, name), value, known[name])


def default_problems(recipe: Recipe, methods: Collection[object]) -> Iterator[Problem]:
    """Yields mistakes in a recipe's top-level defaults: unknown to all its methods, or impossible."""
    specs = [spec for name in methods if isinstance(name, str) and (spec := method_spec(name))]
    known = {parameter.name: parameter for spec in specs for parameter in spec.parameters}
    for name, value in recipe.parameters.defaults:
        if name in known:
            yield from _setting_problems(("parameters", name), value, known[name])
        elif len(specs) == len(methods):
            hint = suggest(name, {*known, *OUTER})
            yield Problem(("parameters", name), f"no method of this recipe takes it{hint}")


def missing_problems(recipe: Recipe, part: Slice, spec: MethodSpec, base: Source | None) -> Iterator[Problem]:
    """Yields required parameters that have no value for a source or for some tensors."""
    scopes = slice_scopes(recipe, part)
    places: list[tuple[KeyPath, str, tuple[ParameterSpec, ...], Scopes]] = [
        (("parameters",), spec.name, spec.shared_parameters, scopes)
    ]
    for position, source in enumerate(part.sources):
        parameters = source_parameters(spec, source is base)
        places.append((("sources", position), source.model, parameters, [dict(source.parameters), *scopes]))
    for path, owner, parameters, place_scopes in places:
        required = tuple(p for p in parameters if p.required)
        settled = dict(settle(required, place_scopes, 0.0))
        for parameter in required:
            value = settled.get(parameter.name)
            if value is None:
                yield Problem(path, f"{parameter.name} is missing; {spec.name} needs it for {owner}")
            elif isinstance(value, tuple) and value[-1][0] is not None:
                yield Problem(
                    path,
                    f"{parameter.name} has no value for tensors that none of its filters match; "
                    "end the list with {value: …}",
                )


def _setting_problems(path: KeyPath, setting: Any, parameter: ParameterSpec) -> Iterator[Problem]:
    items = setting if isinstance(setting, tuple) else (setting,)
    conditional = [isinstance(item, Conditional) for item in items]
    if any(conditional) and not all(conditional):
        yield Problem(path, "mixes plain values and {filter: …, value: …}; write {value: …} for the rest")
        return
    if not any(conditional):
        yield from _gradient_problems(path, setting, parameter)
        return
    for item in items:
        if item.filter is not None and "layers." in item.filter:
            yield Problem(
                path,
                f"filters see a tensor's name inside its layer (self_attn.q_proj.weight), found "
                f"{item.filter!r}; write a slice of its own for a layer of its own",
            )
        yield from _gradient_problems(path, item.value, parameter)


def _gradient_problems(path: KeyPath, setting: Any, parameter: ParameterSpec) -> Iterator[Problem]:
    """Yields mistakes in a scalar, or in a list of scalars that runs over the slice."""
    items = setting if isinstance(setting, tuple) else (setting,)
    if not items:
        yield Problem(path, "an empty list has no value")
    for item in items:
        if isinstance(item, (tuple, Conditional)):
            yield Problem(path, "expected single values in a list")
        elif (text := parameter.problem(item)) is not None:
            yield Problem(path, text)
