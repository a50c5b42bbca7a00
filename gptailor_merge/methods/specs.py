"""Describes mergekit's merge methods by types of our own, so that no caller imports mergekit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

from mergekit.config import evaluate_setting
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import MergeMethod
from pydantic import ValidationError

from gptailor_merge.documents import suggest
from gptailor_merge.recipe.plan import SELECT, Scalar
from gptailor_merge.recipe.recipe import TAILOR


class BasePolicy(Enum):
    """Says how a method treats a base among its inputs."""

    OPTIONAL = "optional"
    REQUIRED = "required"
    FORBIDDEN = "forbidden"
    IGNORED = "ignored"


class ParameterScope(Enum):
    """Says who has a value of a parameter: the method, every input, or every input but the base."""

    SHARED = "shared"
    INPUT = "input"
    NON_BASE = "non_base"


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a merge method.

    Attributes:
        required: True if the parameter has no default.
        default: its default; None if it is required.
        validate: returns a value in the parameter's type, or raises pydantic's ValidationError.
    """

    name: str
    scope: ParameterScope
    required: bool
    default: Any
    validate: Callable[[Any], Any] = field(compare=False, repr=False)

    def problem(self, value: object) -> str | None:
        """Returns what is wrong with a value, or None."""
        try:
            self.validate(value)
        except ValidationError as error:
            text = error.errors(include_url=False)[0]["msg"]
            return f"{text[0].lower() + text[1:]}, found {value!r}"
        return None

    def value_at(self, setting: Any, t: float) -> Scalar:
        """Evaluates a setting as mergekit does.

        Args:
            setting: a scalar, or a tuple of scalars: a gradient, of which numbers are interpolated.
            t: the position in the gradient, from 0 to 1.
        """
        gradient = list(setting) if isinstance(setting, tuple) else setting
        value: Scalar = evaluate_setting("", gradient, t, validate=self.validate)
        return value


@dataclass(frozen=True)
class MethodSpec:
    """The inputs and the parameters that a merge method takes.

    Attributes:
        fewest: the smallest number of inputs, the base included.
        most: the largest number of inputs, or None if there is no limit.
        fewest_besides_base: the smallest number of inputs that are not the base, or None.
        most_besides_base: the largest number of inputs that are not the base, or None.
    """

    name: str
    parameters: tuple[ParameterSpec, ...]
    base: BasePolicy
    fewest: int
    most: int | None
    fewest_besides_base: int | None
    most_besides_base: int | None
    _validate_ids: Callable[..., None] = field(compare=False, repr=False)

    @property
    def takes_base(self) -> bool:
        """True if one of the inputs can be the method's base."""
        return self.base in (BasePolicy.OPTIONAL, BasePolicy.REQUIRED)

    @property
    def shared_parameters(self) -> tuple[ParameterSpec, ...]:
        """The parameters of the method as a whole."""
        return tuple(p for p in self.parameters if p.scope is ParameterScope.SHARED)

    @property
    def input_parameters(self) -> tuple[ParameterSpec, ...]:
        """The parameters that inputs have values of."""
        return tuple(p for p in self.parameters if p.scope is not ParameterScope.SHARED)

    def input_problem(self, inputs: int, base: int | None) -> str | None:
        """Returns what is wrong with a number of inputs, in mergekit's words, or None.

        Args:
            base: the position of the base among the inputs, or None.
        """
        try:
            self._validate_ids(range(inputs), base)
        except ValueError as error:
            text = str(error)
            return f"{self.name}: {text[0].lower() + text[1:]}"
        return None


def method_names() -> tuple[str, ...]:
    """Returns the names of the registered methods that a recipe may name, sorted."""
    return tuple(sorted(m.spec.name for m in registry.registered_methods() if m.spec.name != TAILOR))


def method_spec(name: str) -> MethodSpec | None:
    """Returns what a method takes, or None if no such method is registered."""
    return _spec_of(registry.get(name)) if name in method_names() else None


def merge_method_problem(name: object) -> str | None:
    """Returns why a name is not one of a method that merges, or None.

    >>> merge_method_problem("slrep")
    "unknown method, found 'slrep'; did you mean 'slerp'?"
    """
    if name is None:
        return "method is missing; merge takes the name of a mergekit method"
    known = [method for method in method_names() if method != SELECT]
    return None if name in known else f"unknown method, found {name!r}{suggest(str(name), known)}"


@lru_cache(maxsize=256)
def _spec_of(method: MergeMethod) -> MethodSpec:
    contract = method.spec.contract
    return MethodSpec(
        name=method.spec.name,
        parameters=tuple(
            ParameterSpec(
                name=parameter.name,
                scope=ParameterScope(parameter.scope.value),
                required=parameter.required,
                default=None if parameter.required else parameter.default,
                validate=parameter.validate,
            )
            for parameter in method.spec.parameters
        ),
        base=BasePolicy(contract.base.value),
        fewest=contract.min_inputs,
        most=contract.max_inputs,
        fewest_besides_base=contract.min_non_base,
        most_besides_base=contract.max_non_base,
        _validate_ids=contract.validate_ids,
    )
