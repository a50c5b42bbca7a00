"""Bounds turn an objective's config into a gate's."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, WithJsonSchema, create_model, model_validator

from gptailor_merge.objectives.kinds import ObjectiveConfig

LIMIT = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *x *base")


def _read_limit(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and LIMIT.fullmatch(value.strip())):
        raise ValueError(
            f"expected a number, or a multiple of the base's as in '1.5 x base', found {value!r}"
        )
    return float(value) if is_number else value.strip()


_SCHEMA = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": rf"^\s*({LIMIT.pattern})\s*$"}]}


Limit = Annotated[float | str, BeforeValidator(_read_limit), WithJsonSchema(_SCHEMA)]
"""A number in the units that users see, or a multiple of the base model's score."""


class Bound(ObjectiveConfig):
    """A measure with a limit: a candidate beyond it is out. Exactly one of the two is given.

    Attributes:
        at_most: the highest value allowed, a number or a multiple of the base's score: 1.5 x base.
        at_least: the lowest value allowed, likewise.
    """

    at_most: Limit | None = None
    at_least: Limit | None = None

    @model_validator(mode="after")
    def _has_one_limit(self) -> Bound:
        if (self.at_most is None) == (self.at_least is None):
            count = "none" if self.at_most is None else "both"
            raise ValueError(f"expected one of at_most, at_least, found {count}")
        return self

    def describe(self) -> str:
        """Returns the kind's sentence and the limit."""
        limit = f"at most {self.at_most}" if self.at_least is None else f"at least {self.at_least}"
        return f"{self.sentence()}; {limit}"

    def threshold(self, of_base: float) -> float:
        """Returns the limit as a number.

        Args:
            of_base: the base model's own score.
        """
        limit = self.at_least if self.at_most is None else self.at_most
        if isinstance(limit, str):
            match = LIMIT.fullmatch(limit)
            assert match is not None
            return float(match[1]) * of_base
        assert limit is not None
        return limit

    def holds(self, value: float, of_base: float) -> bool:
        """Tells whether a score is within the limit."""
        threshold = self.threshold(of_base)
        return value <= threshold if self.at_least is None else value >= threshold


@cache
def gate_class(config_class: type[ObjectiveConfig]) -> type[Bound]:
    """Returns the config of a kind's gates: the kind's keys, and the limits behind them."""
    name = config_class.__name__.removesuffix("Config") + "Gate"
    return cast(type[Bound], create_model(name, __base__=(Bound, config_class)))
