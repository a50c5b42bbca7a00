"""Names the variants that a user lists, and finds adapters among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gptailor_merge.errors import ConfigError
from gptailor_merge.models.checkpoint import ModelId, is_bare_adapter
from gptailor_merge.models.family import BASE_NAME
from gptailor_merge.recipe.model_names import identity

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


def variants_of(base: str, given: Sequence[str]) -> dict[str, str]:
    """Returns name -> model of the variants, an adapter as `base+adapter`.

    Args:
        given: each MODEL or NAME=MODEL; a model without a name is called by what its own says more than the
            base's: Qwen2.5-Coder-1.5B beside Qwen2.5-1.5B is coder.

    Raises:
        ConfigError: two have one name, or one has the base's.
    """
    variants: dict[str, str] = {}
    for text in given:
        named = None if Path(text).exists() else _NAMED.fullmatch(text)
        model = named[2] if named else text
        name = named[1] if named else short_name(model, base)
        if identity(model) == identity(base):
            raise ConfigError(f"{model} is the base itself; expected a finetune of it")
        if name == BASE_NAME:
            raise ConfigError(f"{model}: the name {BASE_NAME} is the base model's; name it: NAME={model}")
        if name in variants:
            raise ConfigError(
                f"{variants[name]} and {model} would both be called {name!r}; name one of them: NAME={model}"
            )
        is_adapter = is_bare_adapter(ModelId.parse(model)) and "+" not in base
        variants[name] = f"{base}+{model}" if is_adapter else model
    return variants


def short_name(model: str, base: str) -> str:
    """Returns the words of a model's own name that the base's does not have; all where it has them all.

    >>> short_name("Qwen/Qwen2.5-Coder-1.5B", "Qwen/Qwen2.5-1.5B"), short_name("me/base+me/maths", "me/base")
    ('coder', 'maths')
    >>> short_name("google/gemma-3-1b-it@main", "google/gemma-3-1b-pt")
    'it'
    """
    known = {word.lower() for word in _words(base)}
    words = _words(model)
    return "-".join(word for word in words if word.lower() not in known).lower() or "-".join(words).lower()


def _words(model: str) -> list[str]:
    last = Path(model.split("+")[-1].split("@")[0]).name
    return re.findall(r"[\w.]+", last.replace("_", " ")) or ["variant"]
