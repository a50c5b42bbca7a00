"""Settles the parameters of a merge method: which value each has in one slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptailor_merge.methods.specs import MethodSpec, ParameterScope, ParameterSpec
from gptailor_merge.recipe.fields import Conditional
from gptailor_merge.recipe.plan import Scalar, Settings
from gptailor_merge.recipe.recipe import OWN, Recipe, Slice

Scopes = list[Mapping[str, Any]]
"""name -> setting, by falling precedence."""


def slice_scopes(recipe: Recipe, part: Slice) -> Scopes:
    """Returns the settings of a slice and the recipe's defaults; a source's own precede them."""
    of_slice = {name: value for name, value in part.parameters if name not in OWN}
    return [of_slice, dict(recipe.parameters.defaults)]


def source_parameters(spec: MethodSpec, is_base: bool) -> tuple[ParameterSpec, ...]:
    """Returns the parameters that a source has values of; a base has none of those that spare it."""
    return tuple(p for p in spec.input_parameters if not (is_base and p.scope is ParameterScope.NON_BASE))


def settle(parameters: Sequence[ParameterSpec], scopes: Scopes, t: float) -> Settings:
    """Returns one value for each parameter that is set; filters are kept.

    Args:
        t: the position in gradients, from 0 to 1.
    """
    settled: list[tuple[str, Scalar | tuple[tuple[str | None, Scalar], ...]]] = []
    for parameter in parameters:
        filtered: list[tuple[str | None, Scalar]] = []
        for scope in scopes:
            setting = scope.get(parameter.name)
            if setting is None:
                continue
            conditionals = setting if isinstance(setting, tuple) else (setting,)
            if not any(isinstance(item, Conditional) for item in conditionals):
                conditionals = (Conditional(value=setting),)
            for conditional in conditionals:
                matches_all = conditional.filter in (None, "*")
                name = None if matches_all else conditional.filter
                filtered.append((name, parameter.value_at(conditional.value, t)))
                if matches_all:
                    break
            else:
                continue  # no filter may match: the next scope is asked, as mergekit does
            break
        if filtered:
            is_plain = filtered[0][0] is None
            settled.append((parameter.name, filtered[0][1] if is_plain else tuple(filtered)))
    return tuple(settled)
