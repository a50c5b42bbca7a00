"""A method's parameters: which a recipe sets, to what, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mergekit.config import evaluate_setting
from mergekit.merge_methods.base import MergeMethodSpec, ParameterScope, ParameterSpec
from pydantic import ValidationError

from gptailor_merge.documents import suggest
from gptailor_merge.errors import KeyPath, Problem
from gptailor_merge.methods.specs import method_spec
from gptailor_merge.recipe.plan import SELECT, Scalar, Settings
from gptailor_merge.recipe.recipe import BASE_MARK, OWN, Conditional, Parameters, Recipe, Slice, Source


def parameter_problems(method: str, part: Slice) -> Iterator[Problem]:
    """Unknown names and impossible values in a slice and its sources."""
    spec = method_spec(method)
    assert spec is not None
    known = {parameter.name: parameter for parameter in spec.parameters}
    places: list[tuple[KeyPath, Parameters, bool]] = [(("parameters",), part.parameters, False)]
    places += [
        (("sources", position, "parameters"), source.parameters, True)
        for position, source in enumerate(part.sources)
    ]
    for path, parameters, of_source in places:
        for name, value in parameters:
            if not of_source and name in OWN:
                continue
            if of_source and name == BASE_MARK and method != SELECT:
                if value is not True:
                    yield Problem((*path, name), f"expected true, found {value!r}")
                continue
            label = "select" if method == SELECT else method
            if name not in known:
                yield Problem((*path, name), f"unknown parameter of {label}{suggest(name, known)}")
            elif of_source and known[name].scope is ParameterScope.SHARED:
                yield Problem((*path, name), f"{label} takes it for the whole slice, not for a source")
            else:
                yield from _value_problems((*path, name), value, known[name])


def default_problems(recipe: Recipe, methods: Collection[object]) -> Iterator[Problem]:
    """Parameters at the top of a recipe that none of its methods takes, or impossible values."""
    specs = [spec for name in methods if isinstance(name, str) and (spec := method_spec(name))]
    known = {parameter.name: parameter for spec in specs for parameter in spec.parameters}
    for name, value in recipe.parameters.defaults:
        if name in known:
            yield from _value_problems(("parameters", name), value, known[name])
        elif len(specs) == len(methods):
            hint = suggest(name, {*known, "embeddings", "head"})
            yield Problem(("parameters", name), f"no method of this recipe takes it{hint}")


def missing_problems(
    recipe: Recipe, part: Slice, method: str, sources: tuple[Source, ...], base: Source | None
) -> Iterator[Problem]:
    """Required parameters without a value, for some source or for some tensors."""
    spec = method_spec(method)
    assert spec is not None
    scopes = scopes_of(recipe, part)
    wanted: list[tuple[KeyPath, str, tuple[ParameterSpec, ...], list[Mapping[str, Any]]]] = [
        (("parameters",), method, spec.shared_parameters, scopes)
    ]
    for position, source in enumerate(part.sources):
        parameters = input_parameters(spec, source is base)
        wanted.append((("sources", position), source.model, parameters, [dict(source.parameters), *scopes]))
    for path, owner, parameters, levels in wanted:
        required = tuple(p for p in parameters if p.required)
        settled = dict(settle(required, levels, 0.0))
        for parameter in required:
            value = settled.get(parameter.name)
            if value is None:
                yield Problem(path, f"{parameter.name} is missing; {method} needs it for {owner}")
            elif isinstance(value, tuple) and value[-1][0] is not None:
                yield Problem(
                    path,
                    f"{parameter.name} has no value for tensors that none of its filters match; "
                    "end the list with {value: …}",
                )


def _value_problems(path: KeyPath, value: Any, parameter: ParameterSpec) -> Iterator[Problem]:
    items = value if isinstance(value, tuple) else (value,)
    conditional = [isinstance(item, Conditional) for item in items]
    if any(conditional) and not all(conditional):
        yield Problem(path, "mixes plain values and {filter: …, value: …}; write {value: …} for the rest")
        return
    if not any(conditional):
        yield from _gradient_problems(path, value, parameter)
        return
    for item in items:
        if item.filter is not None and "layers." in item.filter:
            yield Problem(
                path,
                f"filters see a tensor's name inside its layer (self_attn.q_proj.weight), found "
                f"{item.filter!r}; write a slice of its own for a layer of its own",
            )
        yield from _gradient_problems(path, item.value, parameter)


def _gradient_problems(path: KeyPath, value: Any, parameter: ParameterSpec) -> Iterator[Problem]:
    """A number, a text, true or false, or a list of these that runs over the slice."""
    items = value if isinstance(value, tuple) else (value,)
    if not items:
        yield Problem(path, "an empty list has no value")
    for item in items:
        if isinstance(item, (tuple, Conditional)):
            yield Problem(path, "expected single values in a list")
            continue
        try:
            parameter.validate(item)
        except ValidationError as error:
            text = error.errors(include_url=False)[0]["msg"]
            yield Problem(path, f"{text[0].lower() + text[1:]}, found {item!r}")


def scopes_of(recipe: Recipe, part: Slice) -> list[Mapping[str, Any]]:
    """Settings by falling precedence, below those of a source."""
    own = {name: value for name, value in part.parameters if name not in OWN}
    return [own, dict(recipe.parameters.defaults)]


def input_parameters(spec: MergeMethodSpec, is_base: bool) -> tuple[ParameterSpec, ...]:
    """The parameters that a source has values of; some methods take none for their base."""
    return tuple(p for p in spec.input_parameters if not (is_base and p.scope is ParameterScope.NON_BASE))


def settle(parameters: tuple[ParameterSpec, ...], scopes: list[Mapping[str, Any]], t: float) -> Settings:
    """One value for each parameter that is set, gradients evaluated at t; filters are kept."""
    settled: list[tuple[str, Any]] = []
    for parameter in parameters:
        filtered: list[tuple[str | None, Scalar]] = []
        for scope in scopes:
            value = scope.get(parameter.name)
            if value is None:
                continue
            conditionals = value if isinstance(value, tuple) else (value,)
            if not any(isinstance(c, Conditional) for c in conditionals):
                conditionals = (Conditional(value=value),)
            for conditional in conditionals:
                everything = conditional.filter in (None, "*")
                name = None if everything else conditional.filter
                filtered.append((name, _at(conditional.value, parameter, t)))
                if everything:
                    break
            else:
                continue  # a filter may match nothing: the next scope is asked, as mergekit does
            break
        if filtered:
            plain = filtered[0][0] is None
            settled.append((parameter.name, filtered[0][1] if plain else tuple(filtered)))
    return tuple(settled)


def _at(value: Any, parameter: ParameterSpec, t: float) -> Scalar:
    setting = list(value) if isinstance(value, tuple) else value
    result: Scalar = evaluate_setting("", setting, t, validate=parameter.validate)
    return result
